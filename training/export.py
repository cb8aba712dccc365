"""From a trained network to a bundle: ONNX and pt2, proved to score like the network itself before anyone sees them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.tuples import AccountInputs, InputTuples
from training.bundle import (
    EXAMPLE_FILE,
    GOLDEN_FILE,
    ONNX_FILE,
    ORDINARY_FILE,
    PT2_FILE,
    Bundle,
    BundleInfo,
    ordinary_payment,
)
from training.encoder import ENCODER_ONNX, ENCODER_PT2, Encoder, EncoderInfo
from training.model import PaymentNetwork
from training.towers import AccountEncoder

TOLERANCE = 5e-6
"""Largest difference of a score between the network and its graphs. A well-trained network is within 2e-7 (float32,
sums in another order); a barely trained one, whose calibration stretches small logits, comes near 1e-6."""

EXAMPLE_ROWS = 8


def write_bundle(path: Path, model: PaymentNetwork, info: BundleInfo, sample: InputTuples) -> Bundle:
    """Write the bundle folder `path`, whole or not at all, and return it loaded.

    `sample` are real tuples, at least two; scores of network, ONNX and pt2 are compared on them, on one alone, and on
    all of them without neighbours. Raises ModelError where they differ by more than TOLERANCE.
    """
    if len(sample) < 2:
        raise ModelError(f"a bundle needs at least 2 sample payments to trace the network with, got {len(sample)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        arrays = traceable(sample).feeds()
        export_graph(model.to("cpu").eval(), arrays, "batch", "score", onnx=folder / ONNX_FILE, pt2=folder / PT2_FILE)
        example = sample.take(np.arange(min(EXAMPLE_ROWS, len(sample))))
        np.savez(folder / EXAMPLE_FILE, allow_pickle=False, **example.feeds())
        np.save(folder / GOLDEN_FILE, network_scores(model, example), allow_pickle=False)
        np.savez(folder / ORDINARY_FILE, allow_pickle=False, **ordinary_payment(sample).feeds())
        info.save(folder)
        bundle = Bundle.load(folder)
        compare(model, bundle, sample)
        folder.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        folder.replace(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Bundle.load(path)


def compare(model: PaymentNetwork, bundle: Bundle, sample: InputTuples) -> float:
    """Return the largest difference of a score between network, ONNX and pt2; raise ModelError above TOLERANCE."""
    archive = torch.export.load(bundle.path / PT2_FILE).module()
    worst = 0.0
    for tuples in (sample, sample.take(np.array([0])), without_neighbours(sample)):
        expected = network_scores(model, tuples)
        with torch.no_grad():
            from_archive = archive(*as_tensors(tuples.feeds())).numpy()
        for name, got in ((ONNX_FILE, bundle.score(tuples)), (PT2_FILE, from_archive)):
            difference = float(np.abs(got - expected).max(initial=0.0))
            if not difference <= TOLERANCE:
                edges = len(tuples.neighbour_index)
                raise ModelError(
                    f"{name} differs from the network by {difference:.2e} on {len(tuples)} payments with {edges} "
                    f"neighbour edges, at most {TOLERANCE:.0e} was expected; the bundle was not written"
                )
            worst = max(worst, difference)
    return worst


def agree(bundle: Bundle) -> None:
    """Raise ModelError unless a bundle's two graphs score its examples alike, with neighbours, alone and without any.

    What was compared with the network when it was written is compared again as it lies on disk.
    """
    archive = torch.export.load(bundle.path / PT2_FILE).module()
    example = bundle.example()
    for tuples in (example, example.take(np.array([0])), without_neighbours(example)):
        with torch.no_grad():
            expected = archive(*as_tensors(tuples.feeds())).numpy()
        difference = float(np.abs(bundle.score(tuples) - expected).max(initial=0.0))
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{ONNX_FILE} and {PT2_FILE} differ by {difference:.2e} on the bundle's own examples, at most "
                f"{TOLERANCE:.0e} was expected: it was not registered, train again"
            )


def network_scores(model: PaymentNetwork, tuples: InputTuples) -> npt.NDArray[np.float32]:
    """Scores of the PyTorch network itself, float32 [B]."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        scores: npt.NDArray[np.float32] = (
            model(*(tensor.to(device) for tensor in as_tensors(tuples.feeds()))).cpu().numpy()
        )
    return scores


def without_neighbours(tuples: InputTuples) -> InputTuples:
    """The same payments with no neighbour edge at all."""
    return replace(tuples, neighbour_x=tuples.neighbour_x[:0], neighbour_index=tuples.neighbour_index[:0])


def traceable(sample: InputTuples) -> InputTuples:
    """`sample`, with two edges made up where it has fewer: tracing takes sizes 0 and 1 for constants."""
    if len(sample.neighbour_index) >= 2:
        return sample
    width = sample.neighbour_x.shape[1]
    return replace(sample, neighbour_x=np.zeros((2, width), np.float32), neighbour_index=np.arange(2, dtype=np.int64))


def export_graph(
    model: nn.Module, arrays: Mapping[str, npt.NDArray[Any]], rows: str, output: str, *, onnx: Path, pt2: Path
) -> None:
    """Write a network as ONNX and as a torch.export archive, dynamic in its rows, named `rows`, and its edges.

    `arrays` are sample inputs in the network's order: two rows and two edges at least. Those whose names begin with
    `neighbour` have a row per edge.
    """
    batch, edges = torch.export.Dim(rows, min=1), torch.export.Dim("edges", min=0)
    sizes = {name: {0: edges if name.startswith("neighbour") else batch} for name in arrays}
    with _quiet_exporters():
        program = torch.export.export(model, tuple(as_tensors(arrays)), dynamic_shapes=tuple(sizes.values()))
        torch.export.save(program, pt2)
        made = torch.onnx.export(program, input_names=list(arrays), output_names=[output], dynamo=True, verbose=False)
        assert made is not None
        made.save(str(onnx), external_data=False)


def export_encoder(folder: Path, model: AccountEncoder, spec: InputSpec, sample: AccountInputs) -> Encoder:
    """Write an encoder into a bundle folder, and return it loaded.

    Raises ModelError where network, ONNX and pt2 differ by more than TOLERANCE, with edges or without any.
    """
    arrays = _account_arrays(sample)
    model.to("cpu").eval()
    export_graph(model, arrays, "accounts", "embedding", onnx=folder / ENCODER_ONNX, pt2=folder / ENCODER_PT2)
    EncoderInfo(id=encoder_id(model, spec), inputs=spec).save(folder)
    made = Encoder.load(folder)
    archive = torch.export.load(folder / ENCODER_PT2).module()
    bare = replace(sample, neighbour_x=sample.neighbour_x[:0], neighbour_index=sample.neighbour_index[:0])
    for inputs in (sample, bare):
        given = as_tensors(_account_arrays(inputs))
        with torch.no_grad():
            expected, from_archive = model(*given).numpy(), archive(*given).numpy()
        for name, got in ((ENCODER_ONNX, made.embed(inputs)), (ENCODER_PT2, from_archive)):
            difference = float(np.abs(got - expected).max(initial=0.0))
            if not difference <= TOLERANCE:
                raise ModelError(
                    f"{name} differs from the network by {difference:.2e}, at most {TOLERANCE:.0e} expected"
                )
    return made


def encoder_id(model: AccountEncoder, spec: InputSpec) -> int:
    """63 bits over the encoder's weights and inputs: the same training makes the same embeddings."""
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _account_arrays(inputs: AccountInputs) -> dict[str, npt.NDArray[Any]]:
    return {item.name: getattr(inputs, item.name) for item in fields(inputs)}


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> list[torch.Tensor]:
    """Arrays as tensors, in order."""
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays.values()]


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Keep the exporters' notes on missing torchvision and on their own deprecations to themselves."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""From a trained network to a bundle: ONNX and pt2, proved to score like the network itself before anyone sees them."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from graph_features.errors import ModelError
from graph_features.tuples import InputTuples
from training.bundle import EXAMPLE_FILE, ONNX_FILE, PT2_FILE, Bundle, BundleInfo
from training.model import FraudGnn

TOLERANCE = 5e-6
"""Largest difference of a score between the network and its graphs. A well-trained network is within 2e-7 (float32,
sums in another order); a barely trained one, whose calibration stretches small logits, comes near 1e-6."""

EXAMPLE_ROWS = 8


def write_bundle(path: Path, model: FraudGnn, info: BundleInfo, sample: InputTuples) -> Bundle:
    """Write the bundle folder `path`, whole or not at all, and return it loaded.

    `sample` are real tuples, at least two; scores of network, ONNX and pt2 are compared on them, on one alone, and on
    all of them without neighbours. Raises ModelError where they differ by more than TOLERANCE.
    """
    if len(sample) < 2:
        raise ModelError(f"a bundle needs at least 2 sample payments to trace the network with, got {len(sample)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _export(folder, model.to("cpu").eval(), traceable(sample))
        np.savez(
            folder / EXAMPLE_FILE, allow_pickle=False, **sample.take(np.arange(min(EXAMPLE_ROWS, len(sample)))).feeds()
        )
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


def compare(model: FraudGnn, bundle: Bundle, sample: InputTuples) -> float:
    """Return the largest difference of a score between network, ONNX and pt2; raise ModelError above TOLERANCE."""
    archive = torch.export.load(bundle.path / PT2_FILE).module()
    worst = 0.0
    for tuples in (sample, sample.take(np.array([0])), without_neighbours(sample)):
        expected = network_scores(model, tuples)
        with torch.no_grad():
            from_archive = archive(*_tensors(tuples)).numpy()
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


def network_scores(model: FraudGnn, tuples: InputTuples) -> npt.NDArray[np.float32]:
    """Scores of the PyTorch network itself, float32 [B]."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        scores: npt.NDArray[np.float32] = model(*(tensor.to(device) for tensor in _tensors(tuples))).cpu().numpy()
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


def _export(folder: Path, model: FraudGnn, sample: InputTuples) -> None:
    batch, edges = torch.export.Dim("batch", min=1), torch.export.Dim("edges", min=0)
    sizes = {name: {0: edges if name.startswith("neighbour") else batch} for name in sample.feeds()}
    with _quiet_exporters():
        program = torch.export.export(model, tuple(_tensors(sample)), dynamic_shapes=sizes)
        torch.export.save(program, folder / PT2_FILE)
        onnx = torch.onnx.export(
            program, input_names=list(sample.feeds()), output_names=["score"], dynamo=True, verbose=False
        )
        assert onnx is not None
        onnx.save(str(folder / ONNX_FILE), external_data=False)


def _tensors(tuples: InputTuples) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in tuples.feeds().values()]


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

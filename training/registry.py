"""Models in MLflow: runs, versions, aliases. The only module that talks to MLflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_features.errors import ModelError, StoreUnavailableError
from training.bundle import ONNX_FILE, PT2_FILE, Bundle

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

BUNDLE_FOLDER = "extra_files"
"""Where MLflow keeps the bundle inside a logged model."""

CHAMPION = "champion"

PREVIOUS = "ringfence.previous_champion"
"""Tag of a version: which one was champion before it."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Set before MLflow is imported; what the environment says already wins."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """MLflow at `tracking_uri`; `home` holds its files where that is not a server, and downloaded bundles."""

    tracking_uri: str
    home: Path

    @classmethod
    def open(cls, home: Path) -> Registry:
        """MLFLOW_TRACKING_URI if set, else SQLite in `home`/mlruns."""
        default = f"sqlite:///{(home.resolve() / 'mlruns' / 'mlflow.db').as_posix()}"
        return cls(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or default, home=home.resolve())

    @property
    def _folder(self) -> Path:
        """Where artifacts go: beside a SQLite database, else in `home`."""
        scheme, _, path = self.tracking_uri.partition(":///")
        return Path(path).resolve().parent if scheme == "sqlite" else self.home / "mlruns"

    def client(self) -> MlflowClient:
        """A client of the tracking server; makes the folder of a SQLite one."""
        _mlflow()
        from mlflow.tracking import MlflowClient

        self._folder.mkdir(parents=True, exist_ok=True)
        return MlflowClient(self.tracking_uri, self.tracking_uri)

    def ping(self) -> None:
        """Raise StoreUnavailableError unless MLflow answers."""
        with _mlflow_errors():
            self.client().search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, made if missing."""
        client = self.client()
        with _mlflow_errors():
            found = client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            # A server knows where its artifacts go; a database would put them under the working directory.
            is_server = self.tracking_uri.startswith("http")
            location = None if is_server else (self._folder / "artifacts" / name).as_uri()
            return str(client.create_experiment(name, artifact_location=location))

    def log(
        self,
        bundle: Bundle,
        *,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any],
        metrics: Mapping[str, float],
        history: Mapping[str, list[float]],
        plots: Mapping[str, Path],
    ) -> tuple[str, str]:
        """Log one training run with its bundle and register it under `name`; return (run id, version).

        Raises ModelError when the bundle's ONNX graph and its pt2 archive do not score alike.
        """
        if (bundle.path / PT2_FILE).is_file():
            from training.export import agree

            agree(bundle)
        mlflow = _mlflow()
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        experiment_id = self.experiment(experiment)
        tags = {"feature_hash": bundle.info.feature_hash, "git_revision": bundle.info.git_revision}
        with _mlflow_errors(), mlflow.start_run(experiment_id=experiment_id, tags=tags) as run:
            mlflow.log_params({key: str(value) for key, value in parameters.items()})
            mlflow.log_metrics(dict(metrics))
            for curve, values in history.items():
                for step, point in enumerate(values, start=1):
                    mlflow.log_metric(curve, point, step=step)
            for path in plots.values():
                mlflow.log_artifact(str(path), "plots")
            version = _log_model(mlflow, bundle, name)
        self.tag(name, version, {f"ringfence.{key}": value for key, value in tags.items()})
        return run.info.run_id, version

    def log_figures(
        self,
        *,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        table: Mapping[str, Mapping[str, float]],
        file: str,
    ) -> str:
        """Log a table of figures as a run of its own, as metrics `figure.row` and as the JSON file; return the run."""
        client = self.client()
        with _mlflow_errors():
            run = client.create_run(self.experiment(experiment), run_name=run_name)
            for key, value in parameters.items():
                client.log_param(run.info.run_id, key, str(value))
            for row, figures in table.items():
                for figure, value in figures.items():
                    client.log_metric(run.info.run_id, f"{figure}.{re.sub(r'[^a-z0-9]+', '_', row.lower())}", value)
            client.log_dict(run.info.run_id, {row: dict(figures) for row, figures in table.items()}, file)
            client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, newest first."""
        with _mlflow_errors():
            found = self.client().search_model_versions(f"name = '{name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def forget_runs(self, experiment: str, *, model: str, before: datetime) -> int:
        """Delete runs that began before a moment and that no registered version of `model` came from; return how many.

        MLflow marks them as deleted; `mlflow gc` removes their files.
        """
        client = self.client()
        used = {version.run_id for version in self.versions(model)}
        with _mlflow_errors():
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return 0
            condition = f"attributes.start_time < {int(before.timestamp() * 1000)}"
            token, old = None, []
            while True:
                page = client.search_runs([found.experiment_id], condition, max_results=1_000, page_token=token)
                old += [run.info.run_id for run in page if run.info.run_id not in used]
                token = page.token
                if not token:
                    break
            for run_id in old:
                client.delete_run(run_id)
        return len(old)

    def version_of(self, name: str, alias: str) -> str | None:
        """The version that an alias points to, None when the model or the alias does not exist."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        try:
            return str(client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                return None
            raise StoreUnavailableError(f"MLflow at {_without_password(self.tracking_uri)}: {error}") from error

    def resolve(self, name: str, alias: str) -> tuple[str, Path]:
        """Return the version behind an alias and the folder of its bundle, downloaded once; raise ModelError."""
        version = self.version_of(name, alias)
        if version is None:
            raise ModelError(
                f"no model {name!r} with alias {alias!r} in MLflow at {_without_password(self.tracking_uri)}: "
                "train and promote one (`ringfence train`, `ringfence promote`)"
            )
        return version, self.download(name, version)

    def download(self, name: str, version: str) -> Path:
        """Return the folder of a version's bundle, fetched if it is not here yet; versions never change."""
        target = self.home / "models" / name / version
        if (target / ONNX_FILE).is_file():
            return target
        mlflow = _mlflow()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _mlflow_errors():
            mlflow.set_registry_uri(self.tracking_uri)
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{version}", dst_path=scratch, tracking_uri=self.tracking_uri
            )
            bundle = Path(folder) / BUNDLE_FOLDER
            if not (bundle / ONNX_FILE).is_file():
                raise ModelError(f"version {version} of {name!r} holds no bundle: it was not made by `ringfence train`")
            _move(bundle, target)
        return target

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version, in one step."""
        with _mlflow_errors():
            self.client().set_registered_model_alias(name, alias, version)

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Tags of a version."""
        with _mlflow_errors():
            return dict(self.client().get_model_version(name, version).tags)

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        client = self.client()
        with _mlflow_errors():
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)


def resolve(name: str, alias: str, *, home: Path) -> tuple[str, Path]:
    """Return (version, bundle folder) of the model behind an alias; see Registry.resolve."""
    return Registry.open(home).resolve(name, alias)


def git_revision() -> str:
    """Return the revision of the code that runs, with `-dirty` where it was changed; empty outside a checkout."""
    folder = Path(__file__).resolve().parent
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _log_model(mlflow: Any, bundle: Bundle, name: str) -> str:
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

    from training.export import traceable

    # MLflow's JSON forgets the width of a block without rows, and would refuse its own example.
    example = traceable(bundle.example())
    feeds = bundle.feeds(example)
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(array.dtype, (-1, *array.shape[1:]), key) for key, array in feeds.items()
    ]
    score = bundle.score(example)
    logged = mlflow.onnx.log_model(
        onnx.load(str(bundle.path / ONNX_FILE)),
        name="model",
        signature=ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(score.dtype, (-1,), "score")])),
        input_example=feeds,
        extra_files=[str(path) for path in sorted(bundle.path.iterdir())],
        save_as_external_data=False,
        onnx_execution_providers=["CPUExecutionProvider"],
        registered_model_name=name,
        pip_requirements=["onnxruntime", "numpy"],
        metadata={"feature_hash": bundle.info.feature_hash},
    )
    return str(logged.registered_model_version)


def _move(source: Path, target: Path) -> None:
    """Put a whole folder in place at once; another process may have been quicker with the same version."""
    try:
        source.replace(target)
    except OSError:
        if not (target / ONNX_FILE).is_file():
            raise


def _mlflow() -> Any:
    """Import MLflow with its telemetry and its chatter off, and without the warnings that its own type hints give."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        import mlflow.onnx
        import mlflow.pyfunc
    return mlflow


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Turn what MLflow raises into errors that say what to do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise StoreUnavailableError(f"MLflow: {error}; check MLFLOW_TRACKING_URI and that it answers") from error


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.split(':')[0]}{at}{place}" if at else uri

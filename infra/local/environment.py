"""The environment that points Ringfence, Feast and MLflow at the local servers."""

from __future__ import annotations

import hmac
import importlib.util
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from graph_features.errors import ServiceError
from graph_features.settings import PostgresSettings, Profile
from infra.local.postgres import MLFLOW_DATABASE

FEAST_FILE = "feature_store.services.yaml"


def environment(home: Path, settings: Iterable[BaseSettings]) -> dict[str, str]:
    """Every variable of the given settings, and what Feast and MLflow read themselves."""
    values = {"RINGFENCE_PROFILE": Profile.SERVICES.value, "RINGFENCE_HOME": str(home)}
    for server in settings:
        values.update(variables(server))
        if isinstance(server, PostgresSettings):
            values["MLFLOW_TRACKING_URI"] = mlflow_uri(server, MLFLOW_DATABASE)
            values["RINGFENCE_AUTH_ADMIN_KEY"] = admin_key(server)
    values["FEAST_FS_YAML_FILE_PATH"] = str(feast_file())
    values["MLFLOW_DISABLE_TELEMETRY"] = "true"
    values["DO_NOT_TRACK"] = "true"
    return values


def variables(settings: BaseSettings) -> dict[str, str]:
    """One variable per field of a settings class, under its prefix."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    return {f"{prefix}{name}".upper(): _plain(getattr(settings, name)) for name in type(settings).model_fields}


def admin_key(settings: PostgresSettings) -> str:
    """The REST server's administrator key of this home: the same at every start, and no way back to the password."""
    password = settings.password.get_secret_value()
    return hmac.digest(password.encode(), b"ringfence administrator", "sha256").hex()


def mlflow_uri(settings: PostgresSettings, database: str) -> str:
    """Where MLflow keeps runs and models; it needs the driver named."""
    password = settings.password.get_secret_value()
    return f"postgresql+psycopg://{settings.user}:{password}@{settings.host}:{settings.port}/{database}"


def feast_file() -> Path:
    """Feast's configuration for this profile, inside the installed feature_repo package."""
    spec = importlib.util.find_spec("feature_repo")
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError("the package feature_repo is not installed: `pip install ringfence` brings it")
    return Path(next(iter(spec.submodule_search_locations))).resolve() / FEAST_FILE


def lines(values: Mapping[str, str]) -> str:
    """Shell lines, one variable each, that graph_features.settings reads too."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _plain(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)

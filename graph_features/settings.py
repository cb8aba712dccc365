"""Settings, one frozen class per service, read from the environment at an entry point and passed down.

With RINGFENCE_PROFILE=services and nothing else set, addresses and passwords come from the file that
`ringfence services up` wrote (RINGFENCE_HOME/services/env): entry points call `export_services_environment` first.
"""

from __future__ import annotations

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from graph_features.errors import SettingsError


class Profile(StrEnum):
    """embedded: Python packages only. services: PostgreSQL, Redis and Neo4j."""

    EMBEDDED = "embedded"
    SERVICES = "services"


class PlatformSettings(BaseSettings):
    """What every entry point needs to know first."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_", frozen=True, extra="ignore")

    profile: Profile = Profile.EMBEDDED
    home: Path = Field(default=Path(".ringfence"), description="State folder: embedded stores, caches, local servers.")
    project: str = Field(
        default="ringfence", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="Feast project and key prefix."
    )
    workers: int = Field(default_factory=lambda: max(1, os.cpu_count() or 1), ge=1, le=256)


class ExecutorKind(StrEnum):
    """process: worker processes of this machine. ray: tasks on a Ray cluster."""

    PROCESS = "process"
    RAY = "ray"


class ExecutorSettings(BaseSettings):
    """Where work that falls into parts is done: chunks of backfills and refreshes, and the pools of the server."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_", frozen=True, extra="ignore")

    executor: ExecutorKind = ExecutorKind.PROCESS
    ray_address: str = Field(default="auto", description="host:port of the cluster's head; auto takes this machine's.")
    ray_task_cpus: float = Field(default=1.0, gt=0, le=64, description="Cores that a task or an actor reserves.")
    ray_task_memory_mb: int = Field(
        default=0, ge=0, description="Memory that each reserves, and that a part's work may not exceed; 0 is no limit."
    )


class PostgresSettings(BaseSettings):
    """The system of record and Feast's offline store and registry."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_POSTGRES_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=5432, ge=1, le=65535)
    user: str = "ringfence"
    password: SecretStr = SecretStr("")
    database: str = "ringfence"
    sslmode: str = "prefer"
    connect_timeout_s: int = Field(default=10, ge=1)

    def conninfo(self) -> dict[str, str | int]:
        """Keyword arguments for psycopg.connect."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password.get_secret_value(),
            "dbname": self.database,
            "sslmode": self.sslmode,
            "connect_timeout": self.connect_timeout_s,
        }


class RedisSettings(BaseSettings):
    """The online store."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_REDIS_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=6379, ge=1, le=65535)
    password: SecretStr = SecretStr("")
    db: int = Field(default=0, ge=0)
    tls: bool = False
    tls_ca_file: str = Field(default="", description="Certificates to trust; empty trusts those of the system.")
    cluster: bool = Field(default=False, description="The address is that of any node of a Redis Cluster.")
    timeout_s: float = Field(default=5.0, gt=0)


class Neo4jSettings(BaseSettings):
    """The graph."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_NEO4J_", frozen=True, extra="ignore")

    uri: str = "bolt://127.0.0.1:7687"
    user: str = "neo4j"
    password: SecretStr = SecretStr("")
    database: str = "neo4j"
    timeout_s: float = Field(default=30.0, gt=0)


class IngestSettings(BaseSettings):
    """Money and privacy at the door. RINGFENCE_RATES is JSON: {"USD": "0.92"} units of base currency per unit."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_", frozen=True, extra="ignore")

    base_currency: str = Field(default="EUR", pattern=r"^[A-Z]{3}$")
    rates: dict[str, str] = Field(default_factory=dict)
    hash_key: SecretStr = Field(
        default=SecretStr(""), description="Key for hashing device, card and ip; empty stores them as they come."
    )


class FeatureSettings(BaseSettings):
    """Constants that features depend on; part of the feature hash."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_FEATURE_", frozen=True, extra="ignore")

    thresholds: tuple[int, ...] = Field(
        default=(100, 500, 1_000, 5_000, 10_000), description="Reporting limits, in whole units of the base currency."
    )
    high_risk_countries: tuple[str, ...] = ("AF", "IR", "KP", "MM", "SY", "YE")
    base_exponent: int = Field(default=2, ge=0, le=4, description="Decimals of the base currency.")
    slice_max_age_s: int = Field(default=3 * 86_400, ge=1, description="Age after which a slice row counts as absent.")
    ring_window_s: int = Field(
        default=7 * 86_400, ge=1, le=30 * 86_400, description="Longest time that a cycle or a scatter-gather takes."
    )


class PoolKind(StrEnum):
    """process: supervised worker processes. thread: inference on threads of the server, each with a model of its own.
    inline: everything on threads of the server, for tests and tiny machines. ray: actors on a Ray cluster."""

    PROCESS = "process"
    THREAD = "thread"
    INLINE = "inline"
    RAY = "ray"


class ServingSettings(BaseSettings):
    """The REST server. Times are milliseconds where the name says so, seconds elsewhere."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_SERVING_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free port.")
    tls_certificate: str = Field(default="", description="File with the certificate chain; empty speaks plain HTTP.")
    tls_key: str = Field(default="", description="File with the certificate's private key.")
    processes: int = Field(
        default=1, ge=1, le=64, description="Servers behind the port, each with its own workers, /metrics and /health."
    )
    pool: PoolKind = PoolKind.PROCESS
    workers: int = Field(default=0, ge=0, le=256, description="Inference workers; 0 takes RINGFENCE_WORKERS.")
    feature_workers: int = Field(default=1, ge=1, le=256, description="Workers that compute missing features.")
    shard_rows: int = Field(default=200, ge=1, le=10_000, description="Payments from which on a request is split.")
    max_batch: int = Field(default=1_000, ge=1, le=100_000, description="Most transactions or rows in one request.")
    max_explained: int = Field(default=50, ge=1, description="Most transactions in one request with explain.")
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1_024)
    body_timeout_s: float = Field(default=30.0, gt=0, description="Time that a request's body has to arrive.")
    max_header_bytes: int = Field(default=32 * 1024, ge=1_024, description="First line and headers of a request.")
    header_timeout_s: float = Field(default=10.0, gt=0, description="Time that they have to arrive.")
    write_timeout_s: float = Field(default=30.0, gt=0, description="Longest time a client takes nothing of its reply.")
    max_connections: int = Field(default=500, ge=1, description="Open connections; more are answered 503 and closed.")
    keep_alive_s: int = Field(default=30, ge=1, description="Time that an idle connection stays open.")
    max_in_flight: int = Field(default=64, ge=1, description="Requests at work at once; more are answered 503.")
    batch_window_ms: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Longest time that a small request waits for others while a group is on its way and a worker free.",
    )
    overload_ms: int = Field(
        default=1_000, ge=1, description="Expected wait for a worker above which requests are answered 503."
    )
    worker_memory_mb: int = Field(
        default=4_096, ge=0, description="Resident memory above which a worker is replaced between tasks; 0 never."
    )
    deadline_ms: int = Field(default=2_000, ge=1, description="Longest wait for missing features of one request.")
    score_timeout_ms: int = Field(default=5_000, ge=1, description="Longest time for one inference task.")
    refresh_timeout_ms: int = Field(default=60_000, ge=1, description="Longest time for one feature task.")
    drain_s: float = Field(default=10.0, ge=0, description="Time that running requests get at shutdown.")
    model_name: str = "ringfence"
    model_alias: str = "champion"
    challenger_alias: str = Field(
        default="", description="Alias of a model that scores every request too, off the reply's path; empty for none."
    )
    model_poll_s: float = Field(default=5.0, gt=0, description="How often the alias is looked up.")
    future_skew_s: int = Field(default=300, ge=0, description="How far ahead of the clock a payment may lie.")
    decision_sample: float = Field(default=1.0, ge=0, le=1, description="Share of scores that leave a decision record.")
    decision_retention_days: int = Field(default=400, ge=0, description="Days that decisions are kept; 0 keeps all.")
    decision_backlog_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="Most decisions that wait on disk for their database."
    )
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")


class AuthMode(StrEnum):
    """auto: off in the embedded profile on loopback, on elsewhere. off: refused but there. on: always."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AuthSettings(BaseSettings):
    """Who may call the REST server: API keys (`ringfence keys`), and tokens of an OpenID Connect issuer."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_AUTH_", frozen=True, extra="ignore")

    mode: AuthMode = Field(
        default=AuthMode.AUTO, description="auto, on or off; auto is off in the embedded profile on loopback only."
    )
    admin_key: SecretStr = Field(
        default=SecretStr(""), description="A key with all rights, for the first start; at least 32 characters."
    )
    refresh_s: float = Field(default=5.0, gt=0, description="How soon every server notices a revoked key.")
    oidc_issuer: str = Field(default="", description="Tokens must be from this issuer; empty takes no tokens.")
    oidc_audience: str = Field(default="", description="Tokens must be for this audience.")
    oidc_jwks: str = Field(default="", description="The issuer's key set: a file or an https URL.")
    oidc_scope_claim: str = Field(default="scope", description="Claim with the scopes, as text or list.")
    oidc_scope_prefix: str = Field(default="", description='What stands before our scopes, as in "ringfence:predict".')
    oidc_leeway_s: float = Field(default=30.0, ge=0, le=300, description="How far the issuer's clock may be off.")

    @field_validator("admin_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError("expected at least 32 characters")
        return value


class JobSettings(BaseSettings):
    """How jobs stay alive and what happens when a store is away."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_JOBS_", frozen=True, extra="ignore")

    heartbeat_s: float = Field(default=5.0, gt=0, description="A worker says that it lives this often.")
    expiry_s: float = Field(default=30.0, gt=0, description="A worker not heard of for so long is dead.")
    patience_s: float = Field(default=60.0, ge=0, description="Longest wait for a store that went away amid a job.")
    max_attempts: int = Field(
        default=5, ge=1, description="Tries of a chunk within one run while stores come and go; others get one."
    )


class RetentionSettings(BaseSettings):
    """What the retention job keeps, in days; 0 keeps everything."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_RETENTION_", frozen=True, extra="ignore")

    offline_days: int = Field(
        default=730, ge=0, description="Offline rows; of each entity the last event row before that stays too."
    )
    ledger_days: int = Field(default=180, ge=0, description="Ended jobs with their chunks and ticks.")
    registry_days: int = Field(default=90, ge=0, description="Materialization intervals in Feast's registry.")
    mlflow_days: int = Field(default=365, ge=0, description="MLflow runs that no registered model came from.")
    log_days: int = Field(default=30, ge=0, description="Log files of local servers below RINGFENCE_HOME.")


class TrainingSettings(BaseSettings):
    """How models are trained and judged."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_TRAIN_", frozen=True, extra="ignore")

    label_maturity_s: int = Field(
        default=7 * 86_400, ge=0, description="Age after which a payment without a label counts as genuine."
    )
    neighbours: int = Field(default=10, ge=1, le=64, description="Newest payments per account that the model sees.")
    hidden: int = Field(default=64, ge=8, le=1_024)
    heads: int = Field(default=2, ge=1, le=16, description="Attention heads; a divisor of hidden.")
    dropout: float = Field(default=0.2, ge=0, lt=1)
    cut_points: int = Field(
        default=32, ge=0, le=1_024, description="Per side and payment: thresholds that the network sees; 0 is none."
    )
    epochs: int = Field(default=30, ge=1, le=1_000)
    patience: int = Field(default=6, ge=1, description="Epochs without a better validation AP before training stops.")
    batch_rows: int = Field(default=1_024, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    positive_weight_limit: float = Field(default=5.0, ge=1, description="Largest weight of a fraud in the loss.")
    negatives_per_positive: float = Field(default=0, ge=0, description="Genuine rows per fraud and epoch; 0 takes all.")
    validation_share: float = Field(default=0.2, gt=0, lt=0.9, description="Last part of the training period.")
    refit: bool = Field(default=True, description="Train once more on validation rows too, for as many epochs.")
    seed: int = Field(default=0, ge=0)
    workers: int = Field(
        default=1, ge=1, le=64, description="Processes that share every batch; on Ray where RINGFENCE_EXECUTOR says so."
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda)$")
    chunk_rows: int = Field(default=20_000, ge=1, description="Payments per historical read.")
    dataset_cache_mb: int = Field(
        default=4_096, ge=0, description="Datasets kept on disk, to be read again; 0 keeps none."
    )
    alerts_per_day: int = Field(default=100, ge=1, description="Alert budget that the threshold is set for.")
    largest_alert_share: float = Field(default=0.02, gt=0, le=1, description="Most alerts as a share of payments.")
    model_name: str = "ringfence"
    experiment: str = "ringfence"


class PromotionSettings(BaseSettings):
    """How a model comes into service."""

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_PROMOTION_", frozen=True, extra="ignore")

    gates: Path | None = Field(default=None, description="YAML file of gates; without it the defaults hold.")


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def services_env_file(home: Path) -> Path:
    """Where `ringfence services up` writes addresses and passwords, readable by its owner alone."""
    return home / "services" / "env"


def load(settings_class: type[SettingsT]) -> SettingsT:
    """Build settings from the environment; raise SettingsError naming the variable, what was expected and what came."""
    try:
        return settings_class()
    except ValidationError as error:
        prefix = str(settings_class.model_config.get("env_prefix", ""))
        first = error.errors()[0]
        name = prefix + "_".join(str(part) for part in first["loc"]).upper()
        # The value is left out on purpose: it may be a secret.
        raise SettingsError(f"{name}: {first['msg']}; see docs/configuration.md") from None


def export_services_environment() -> None:
    """In the services profile, put what `ringfence services up` wrote into the environment; what is set there wins.

    Called first thing by entry points, so that Feast and MLflow, which read the environment themselves, see it too.
    """
    platform = load(PlatformSettings)
    env_file = services_env_file(platform.home)
    if platform.profile is not Profile.SERVICES or not env_file.is_file():
        return
    for line in env_file.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            os.environ.setdefault(name, shlex.split(value)[0] if value else "")

"""What requests and replies look like. msgspec decodes and encodes them; OpenAPI is made from the same classes."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from graph_features.contracts import MAX_ID_LENGTH

Id = Annotated[
    str,
    Meta(min_length=1, max_length=MAX_ID_LENGTH, description="1 to 128 characters, without control characters."),
]
Moment = Annotated[
    str,
    Meta(
        max_length=64,
        description="RFC 3339 with a time zone, from 1970 to 2099. Parts finer than a millisecond are truncated.",
        examples=["2026-03-01T12:00:00Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
# msgspec takes a Decimal from a JSON number, exactly as written, or from a string. Its schema names only the latter;
# serving.openapi takes that out.
Amount = Annotated[
    Decimal,
    Meta(
        description="Major units of `currency`, 0 or more, as a JSON number or a decimal string.",
        examples=[129.9],
        extra_json_schema={
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "format": "decimal", "pattern": r"^[0-9]{1,16}(\.[0-9]{1,4})?$"},
            ]
        },
    ),
]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217 code.", examples=["EUR"])]
Country = Annotated[str, Meta(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2 code.", examples=["DE"])]
Latitude = Annotated[float, Meta(ge=-90, le=90, description="Degrees.")]
Longitude = Annotated[float, Meta(ge=-180, le=180, description="Degrees.")]
Token = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body or a part of one: unknown fields are refused."""


class Transaction(Body, frozen=True, kw_only=True):
    """One payment. A card payment is one too: the customer sends, the terminal or merchant receives."""

    transaction_id: Id
    event_timestamp: Moment
    sender_id: Id
    receiver_id: Id
    amount: Amount
    currency: Currency
    channel: Token | None = None
    device_id: Token | None = None
    card_id: Token | None = None
    ip: Token | None = None
    sender_country: Country | None = None
    receiver_country: Country | None = None
    sender_lat: Latitude | None = None
    sender_lon: Longitude | None = None
    receiver_lat: Latitude | None = None
    receiver_lon: Longitude | None = None


class PredictRequest(Body, frozen=True, kw_only=True):
    """Payments to score. Scoring never stores a payment."""

    transactions: Annotated[list[Transaction], Meta(min_length=1)]
    explain: bool = False


class TransactionsRequest(Body, frozen=True, kw_only=True):
    """Payments to accept."""

    transactions: Annotated[list[Transaction], Meta(min_length=1)]


class Status(Body, frozen=True, kw_only=True):
    """What became of a payment, and when that was learned."""

    transaction_id: Id
    status: Literal["completed", "failed", "reversed"]
    status_timestamp: Moment


class StatusesRequest(Body, frozen=True, kw_only=True):
    """Statuses to accept."""

    statuses: Annotated[list[Status], Meta(min_length=1)]


class Label(Body, frozen=True, kw_only=True):
    """Whether a payment was fraud, when that became known, and which of its accounts it names as fraudulent."""

    transaction_id: Id
    is_fraud: bool
    label_timestamp: Moment
    fraud_party: Literal["sender", "receiver", "both"] = "both"


class LabelsRequest(Body, frozen=True, kw_only=True):
    """Labels to accept."""

    labels: Annotated[list[Label], Meta(min_length=1)]


class JobRequest(Body, frozen=True, kw_only=True):
    """A job to run now. `parameters` depend on the kind; GET /jobs/kinds lists them."""

    kind: Token
    parameters: dict[str, Any] = {}


class ModelName(Struct, frozen=True, kw_only=True):
    """The model that scored."""

    name: str
    version: str
    alias: str


class Degraded(Struct, frozen=True, kw_only=True):
    """A feature view whose row a score had to do without, or without its last events.

    `reason` is the row's state: missing, stale (not all events are in it), too_old (a scheduled view's limit), future
    (it speaks for a later instant). `cause` is why the feature workers could not help: deadline, unavailable, or null
    where the view is renewed on a schedule only.
    """

    role: Literal["sender", "receiver", "pair", "reverse"]
    view: str
    reason: Literal["missing", "stale", "too_old", "future"]
    cause: Literal["deadline", "unavailable"] | None


class FeatureEffect(Struct, frozen=True, kw_only=True):
    """What one input did to a score, in log-odds: its value, and the median that it is compared with."""

    role: Literal["sender", "receiver", "payment"]
    feature: str
    value: float | None
    ordinary: float | None
    effect: float


class NeighbourEffect(Struct, frozen=True, kw_only=True):
    """What one earlier payment of the sender or the receiver, with whom and how much, did to a score, in log-odds."""

    role: Literal["sender", "receiver"]
    account_id: str
    direction: Literal["sent", "received"]
    amount_minor: int
    event_timestamp_ms: int
    effect: float


class Explanation(Struct, frozen=True, kw_only=True):
    """What moved a score away from that of an ordinary payment, largest effects first; positive ones pushed it up."""

    groups: dict[str, float]
    features: list[FeatureEffect]
    neighbours: list[NeighbourEffect]


class Score(Struct, frozen=True, kw_only=True):
    """One payment's score: the model's probability of fraud, and the decision at its threshold."""

    transaction_id: str
    fraud_score: Annotated[float, Meta(ge=0, le=1)]
    threshold: float
    decision: Literal["flag", "pass"]
    features_as_of: dict[str, str | None]
    unseen: list[str]
    degraded: list[Degraded]
    explanation: Explanation | UnsetType = UNSET


class Routes(Struct, frozen=True, kw_only=True):
    """How many rows each route computed or scored for this request."""

    feature_engineering: int
    inference: int


class PredictReply(Struct, frozen=True, kw_only=True):
    """Scores in the order of the request."""

    model: ModelName
    scores: list[Score]
    routes: Routes
    timing_ms: dict[str, float]
    request_id: str
    notices: list[str] = []


class Rejected(Struct, frozen=True, kw_only=True):
    """A row that was refused."""

    index: int
    transaction_id: str
    reason: str


class WriteReply(Struct, frozen=True, kw_only=True):
    """What became of the rows: `inserted` were new, `known` were there with the same content."""

    inserted: int
    known: int
    sequence: int
    refreshed: Literal["done", "pending"]
    timing_ms: dict[str, float]
    request_id: str
    notices: list[str] = []


class FeatureRow(Struct, frozen=True, kw_only=True):
    """One entity's features: per "view:feature" its value and status, per view its as_of."""

    entity: dict[str, str]
    values: dict[str, Any]
    statuses: dict[str, str]
    event_timestamps: dict[str, str | None]
    pending: bool


class FeaturesReply(Struct, frozen=True, kw_only=True):
    """Features of entities in the order in which they were asked for."""

    entity: str
    features: list[str]
    rows: list[FeatureRow]
    request_id: str


class CatalogReply(Struct, frozen=True, kw_only=True):
    """Every feature view with its features, and the names of the feature services."""

    views: list[dict[str, Any]]
    services: list[str]
    request_id: str


class DecisionsReply(Struct, frozen=True, kw_only=True):
    """Decision records of one transaction, newest first."""

    transaction_id: str
    decisions: list[dict[str, Any]]
    request_id: str


class JobReply(Struct, frozen=True, kw_only=True):
    """A job as the ledger knows it."""

    job: dict[str, Any]
    request_id: str


class JobsReply(Struct, frozen=True, kw_only=True):
    """Jobs, newest first, and the state of the platform that they keep: null where it cannot be asked."""

    jobs: list[dict[str, Any]]
    status: dict[str, Any] | None
    request_id: str


class JobKind(Struct, frozen=True, kw_only=True):
    """A kind of job, and its parameters as JSON Schema."""

    kind: str
    description: str
    parameters: dict[str, Any]


class JobKindsReply(Struct, frozen=True, kw_only=True):
    """The kinds of job that can be asked for."""

    kinds: list[JobKind]
    request_id: str


class LiveReply(Struct, frozen=True, kw_only=True):
    """The server's own state."""

    status: Literal["ok", "failing"]
    reason: str | None = None


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, as RFC 9457 has it. Bad input names the field, what was expected and what came.

    `error` repeats the detail where the Open Inference Protocol wants it.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None
    field: str | None = None
    expected: str | None = None
    got: str | None = None
    inserted: int | None = None
    known: int | None = None
    rejected: list[Rejected] | None = None
    error: str | None = None


class Check(Struct, frozen=True, kw_only=True):
    """One dependency's health. Without a needed one the service is not healthy."""

    status: Literal["ok", "failing"]
    needed: bool
    latency_ms: float
    detail: dict[str, Any] = {}
    error: str | None = None


class HealthReply(Struct, frozen=True, kw_only=True):
    """ok: all answer. degraded: only what scoring can do without fails. failing: scoring cannot be relied on."""

    status: Literal["ok", "degraded", "failing"]
    checks: dict[str, Check]
    auth: dict[str, Any] = {}

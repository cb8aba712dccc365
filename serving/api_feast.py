"""What requests and replies in the form of Feast's own feature server look like; see serving.api."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class OnlineFeaturesRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A read of online features in the form of Feast's own feature server."""

    entities: dict[str, list[Any]]
    features: list[str] = []
    feature_service: str | None = None
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


class PushRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows for a push source, in the form of Feast's own feature server: `df` has a list of values per column.

    Times are ISO 8601, UTC where they have no zone; features that are times may be epoch seconds. Every feature of the
    view must be there, null where it is unknown.
    """

    push_source_name: str
    df: dict[str, Any]
    to: Literal["online", "offline", "online_and_offline"] = "online"
    allow_registry_cache: bool = True
    transform_on_write: bool = True


class WriteToOnlineStoreRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows of a feature view, in the form of Feast's own feature server; `df` as in a push."""

    feature_view_name: str
    df: dict[str, Any]
    allow_registry_cache: bool = True
    transform_on_write: bool = True


class OnlineFeaturesMetadata(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names of the result columns, join keys first."""

    feature_names: list[str]
    feature_view_metadata: list[dict[str, Any]] = []


class FeatureVector(Struct, frozen=True, kw_only=True):
    """One column: a value, status and event timestamp per entity."""

    values: list[Any]
    statuses: list[str]
    event_timestamps: list[str]


class OnlineFeaturesReply(Struct, frozen=True, kw_only=True):
    """Features in the form of Feast's own feature server."""

    metadata: OnlineFeaturesMetadata
    results: list[FeatureVector]

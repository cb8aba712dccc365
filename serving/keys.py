"""API keys: made once, shown once, kept as digests beside the decision records."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from graph_features.errors import InvalidInputError, RingfenceError, StoreUnavailableError
from serving.decisions import SCHEMA

PREFIX = "rfk"
_SECRET_BYTES = 32
_KEY = re.compile(rf"{PREFIX}_(?P<id>[0-9a-f]{{12}})_(?P<secret>[A-Za-z0-9_-]{{43}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """What a caller may do. admin may do everything, jobs included."""

    PREDICT = "predict"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class UnknownKeyError(RingfenceError):
    """No such key: `ringfence keys list` shows them all."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as it is kept: never the secret, only its digest. Times are epoch milliseconds."""

    id: str
    name: str
    scopes: frozenset[Scope]
    digest: bytes
    created_at_ms: int
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None

    def usable(self, now_ms: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


def digest_of(secret: str) -> bytes:
    """SHA-256: a secret of 256 random bits can be guessed no faster for it, and a request does not wait."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


_NOBODY = digest_of(secrets.token_urlsafe(_SECRET_BYTES))


def split(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key as it was handed out; None where it is not of that form."""
    match = _KEY.fullmatch(text)
    return (match["id"], match["secret"]) if match else None


def matches(key: ApiKey | None, secret: str) -> bool:
    """Whether `secret` is that of `key`; takes as long where there is no such key."""
    same = hmac.compare_digest(_NOBODY if key is None else key.digest, digest_of(secret))
    return same and key is not None


class KeyTable:
    """The keys of a deployment, in the database that keeps the decisions: every server of it sees the same."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._metadata = sa.MetaData(schema=SCHEMA if engine.dialect.name == "postgresql" else None)
        self.table = sa.Table(
            "api_keys",
            self._metadata,
            sa.Column("id", sa.Text, primary_key=True),
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("scopes", sa.Text, nullable=False),
            sa.Column("digest", sa.LargeBinary, nullable=False),
            sa.Column("created_at_ms", sa.BigInteger, nullable=False),
            sa.Column("expires_at_ms", sa.BigInteger),
            sa.Column("revoked_at_ms", sa.BigInteger),
        )

    def create(
        self, name: str, scopes: Sequence[Scope], *, now_ms: int, expires_at_ms: int | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with the text to hand out, which cannot be had again."""
        if not _NAME.fullmatch(name):
            raise InvalidInputError(field="name", expected="1 to 64 letters, digits, '.', '_' or '-'", got=name)
        if not scopes:
            raise InvalidInputError(field="scope", expected=f"one or more of {', '.join(Scope)}", got=None)
        if expires_at_ms is not None and expires_at_ms <= now_ms:
            raise InvalidInputError(field="expires", expected="a time to come", got=expires_at_ms)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(
            id=secrets.token_hex(6),
            name=name,
            scopes=frozenset(scopes),
            digest=digest_of(secret),
            created_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
        )
        values = {
            "id": key.id,
            "name": key.name,
            "scopes": " ".join(sorted(key.scopes)),
            "digest": key.digest,
            "created_at_ms": key.created_at_ms,
            "expires_at_ms": key.expires_at_ms,
        }
        self._run(sa.insert(self.table).values(values))
        return key, f"{PREFIX}_{key.id}_{secret}"

    def all(self) -> list[ApiKey]:
        """Every key, oldest first, revoked ones too."""
        rows = self._run(sa.select(self.table).order_by(self.table.c.created_at_ms, self.table.c.id))
        return [_key(row) for row in rows]

    def revoke(self, key_id: str, *, now_ms: int) -> None:
        """Make a key useless for good; raise UnknownKeyError. Asking twice changes nothing."""
        if not self._run(sa.select(self.table).where(self.table.c.id == key_id)):
            raise UnknownKeyError(f"no key {key_id!r}: `ringfence keys list` shows them all")
        unrevoked = (self.table.c.id == key_id) & self.table.c.revoked_at_ms.is_(None)
        self._run(sa.update(self.table).where(unrevoked).values(revoked_at_ms=now_ms))

    def _run(self, statement: sa.Executable) -> list[dict[str, Any]]:
        try:
            with self._engine.begin() as connection:
                if self._metadata.schema:
                    connection.execute(sa.schema.CreateSchema(self._metadata.schema, if_not_exists=True))
                self._metadata.create_all(connection)
                result = connection.execute(statement)
                return [dict(row) for row in result.mappings()] if result.returns_rows else []
        except sa.exc.SQLAlchemyError as error:
            # SQLAlchemy's own text quotes the statement's parameters, digests among them.
            cause = getattr(error, "orig", None) or type(error).__name__
            raise StoreUnavailableError(f"the database of API keys failed: {cause}") from error


def _key(row: dict[str, Any]) -> ApiKey:
    scopes = frozenset(Scope(name) for name in row["scopes"].split())
    return ApiKey(**{**row, "scopes": scopes, "digest": bytes(row["digest"])})

"""Keyed hashes of devices, cards and ips: equal things stay equal, and nobody reads them back without the key."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

HASHED_FIELDS: Final = ("device_id", "card_id", "ip")
DIGEST_BYTES: Final = 16


class Hasher:
    """Keyed BLAKE2b (RFC 7693), 32 hexadecimal digits; each field has hashes of its own. Without a key, values stay."""

    def __init__(self, key: SecretStr) -> None:
        secret = key.get_secret_value().encode()
        self.active = bool(secret)
        # BLAKE2b takes at most 64 bytes of key: a digest of the secret lets it have any length.
        self._key = blake2b(secret, digest_size=64, person=b"ringfence key").digest()

    def column(self, field: str, values: pa.Array) -> pa.Array:
        """Hash each distinct value of `field` once; nulls stay null."""
        if not self.active:
            return values
        distinct = pc.unique(values).drop_null()
        hashed = pa.array([self._digest(field, value) for value in distinct.to_pylist()], pa.string())
        return hashed.take(pc.index_in(values, value_set=distinct))

    def _digest(self, field: str, value: str) -> str:
        return blake2b(value.encode(), key=self._key, digest_size=DIGEST_BYTES, person=field.encode()).hexdigest()

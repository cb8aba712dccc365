"""Bearer tokens of an OpenID Connect issuer: signature, issuer, audience, times and scopes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt

from graph_features.errors import SettingsError, StoreUnavailableError
from graph_features.settings import AuthSettings
from serving.keys import Scope

log = logging.getLogger("ringfence.serving.auth")

# Signatures by private keys alone: with "none" or a shared secret whoever can check a token could make one.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEAST_BETWEEN_FETCHES_S = 10.0
_FETCH_TIMEOUT_S = 5.0
_LARGEST_TOKEN = 16 * 1024


class InvalidTokenError(Exception):
    """A token is not one of ours; the message may go to its sender."""


class UnknownSigningKeyError(InvalidTokenError):
    """The issuer may have a new key: its key set is worth another look."""


class TokenVerifier:
    """Checks tokens against the issuer's key set, which is read from a file or a URL and kept."""

    def __init__(self, settings: AuthSettings) -> None:
        for name in ("oidc_audience", "oidc_jwks"):
            if not getattr(settings, name):
                raise SettingsError(
                    f"RINGFENCE_AUTH_{name.upper()}: needed with RINGFENCE_AUTH_OIDC_ISSUER; see docs/configuration.md"
                )
        self._settings = settings
        self._source = _source(settings.oidc_jwks)
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_s = float("-inf")

    def refresh(self, *, older_than_s: float = _LEAST_BETWEEN_FETCHES_S) -> None:
        """Read the key set again unless that was just tried; raise StoreUnavailableError. Blocks."""
        now_s = time.monotonic()
        if now_s - self._fetched_s < older_than_s:
            return
        self._fetched_s = now_s
        self._keys = _signing_keys(self._read())

    def _read(self) -> Any:
        try:
            if isinstance(self._source, Path):
                return json.loads(self._source.read_bytes())
            reply = httpx.get(self._source, timeout=_FETCH_TIMEOUT_S, follow_redirects=False)
            reply.raise_for_status()
            return reply.json()
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise StoreUnavailableError(f"the issuer's key set {self._source} could not be read: {error}") from error

    @property
    def ready(self) -> bool:
        """Whether there is a key to check a signature with."""
        return bool(self._keys)

    def verify(self, token: str) -> frozenset[Scope]:
        """The scopes that a token carries; raise InvalidTokenError."""
        if len(token) > _LARGEST_TOKEN:
            raise InvalidTokenError("the token is too long")
        try:
            claims = jwt.decode(
                token,
                self._signing_key(token),
                algorithms=list(_ALGORITHMS),
                issuer=self._settings.oidc_issuer,
                audience=self._settings.oidc_audience,
                leeway=self._settings.oidc_leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.InvalidTokenError as error:
            raise InvalidTokenError(_REASONS.get(type(error), "the token is not valid")) from None
        return self._scopes(claims)

    def _signing_key(self, token: str) -> jwt.PyJWK:
        kid = jwt.get_unverified_header(token).get("kid")
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid not in self._keys:
            raise UnknownSigningKeyError("the token is signed with a key that its issuer does not publish")
        return self._keys[kid]

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        """Scopes come as one text separated by spaces (RFC 8693) or as a list."""
        claim = claims.get(self._settings.oidc_scope_claim, "")
        names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
        prefix = self._settings.oidc_scope_prefix
        own = {name.removeprefix(prefix) for name in names if isinstance(name, str) and name.startswith(prefix)}
        return frozenset(scope for scope in Scope if scope.value in own)


_REASONS: dict[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is from another issuer",
    jwt.MissingRequiredClaimError: "the token lacks exp, iss or aud",
}


def _source(text: str) -> Path | str:
    if not text.startswith(("http://", "https://")):
        return Path(text)
    host = httpx.URL(text).host
    if text.startswith("http://") and host not in ("localhost", "127.0.0.1", "::1"):
        raise SettingsError("RINGFENCE_AUTH_OIDC_JWKS: expected a file or an https:// URL; keys must not be forged")
    return text


def _signing_keys(document: Any) -> dict[str | None, jwt.PyJWK]:
    """Keys by id. One of a kind that is not known here, or not for signing, is passed over."""
    found: dict[str | None, jwt.PyJWK] = {}
    entries = document.get("keys", []) if isinstance(document, dict) else []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
            continue
        try:
            found[entry.get("kid")] = jwt.PyJWK(entry)
        except jwt.PyJWTError as error:
            log.warning("a key of the issuer was passed over", extra={"error": str(error)})
    if not found:
        raise StoreUnavailableError("the issuer's key set holds no key for signatures")
    return found

"""Who may call which route: every route names a scope, or is open to all."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Depends, Request

from graph_features.errors import RingfenceError, SettingsError, StoreUnavailableError
from graph_features.settings import AuthMode, AuthSettings, PlatformSettings, Profile, ServingSettings
from serving.keys import ApiKey, KeyTable, Scope, digest_of, matches, split
from serving.oidc import InvalidTokenError, TokenVerifier, UnknownSigningKeyError
from serving.problems import ForbiddenError, UnauthorizedError

log = logging.getLogger("ringfence.serving.auth")

_LEAST_BETWEEN_LOOK_UPS_S = 1.0
_JWKS_EVERY_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `name` is for logs: the id of a key or the kind of token, never a person."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYONE = Caller(name="", scopes=frozenset(Scope))
"""The caller where nobody is asked for a key."""

_ADMINISTRATOR = Caller(name="admin key", scopes=frozenset(Scope))


class Guard(Protocol):
    """Tells who asks."""

    required: bool

    async def caller(self, headers: Any) -> Caller:
        """Who sent these headers; raise UnauthorizedError."""

    def start(self) -> None:
        """Read what callers are checked against; raise SettingsError where nobody could ever call. Blocks."""

    async def follow(self) -> None:
        """Keep that up to date, for ever."""

    def describe(self) -> dict[str, Any]:
        """What /health says of it."""


class OpenGuard:
    """Lets everyone in: the embedded profile on loopback."""

    required = False

    async def caller(self, headers: Any) -> Caller:  # noqa: ARG002 - nobody is asked
        return ANYONE

    def start(self) -> None:
        """Nothing to read."""

    async def follow(self) -> None:
        """Nothing changes."""

    def describe(self) -> dict[str, Any]:
        return {"required": False, "reason": "embedded profile on loopback"}


class KeyGuard:
    """Takes API keys of the key table, the administrator's key of the environment, and tokens of the issuer if any.

    Keys are held in memory: a request waits for no database, and one that is away locks nobody out. A key that is not
    known is looked up again at once, but not more often than once a second whoever asks.
    """

    required = True

    def __init__(self, table: KeyTable, settings: AuthSettings, *, clock_ms: Callable[[], int] | None = None) -> None:
        self._table = table
        self._settings = settings
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._keys: dict[str, ApiKey] = {}
        self._looked_up_s = float("-inf")
        admin = settings.admin_key.get_secret_value()
        self._admin = digest_of(admin) if admin else None
        self._tokens = TokenVerifier(settings) if settings.oidc_issuer else None

    def start(self) -> None:
        self._read()
        usable = any(key.usable(self._clock_ms()) for key in self._keys.values())
        if self._tokens is not None:
            try:
                self._tokens.refresh()
            except StoreUnavailableError as error:
                log.warning("tokens cannot be checked yet", extra={"error": str(error)})
        elif not usable and self._admin is None:
            raise SettingsError(
                "nobody could call this server: make a key with `ringfence keys create NAME --scope ...`, or set "
                "RINGFENCE_AUTH_ADMIN_KEY or RINGFENCE_AUTH_OIDC_ISSUER; only the embedded profile on loopback goes "
                "without (see docs/rest-api.md)"
            )

    def _read(self) -> None:
        self._keys = {key.id: key for key in self._table.all()}

    def _look_up(self) -> None:
        """Read because of an unknown key. What the refresh read a moment ago may be older than the key."""
        now_s = time.monotonic()
        if now_s - self._looked_up_s >= _LEAST_BETWEEN_LOOK_UPS_S:
            self._looked_up_s = now_s
            self._read()

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.refresh_s)
            await self._try(self._read)
            tokens = self._tokens
            if tokens is not None:
                older_than_s = _JWKS_EVERY_S if tokens.ready else 0
                await self._try(lambda: tokens.refresh(older_than_s=older_than_s))  # noqa: B023 - awaited here

    async def _try(self, read: Callable[[], None]) -> None:
        """Read again; what cannot be read stays as it was."""
        try:
            await asyncio.to_thread(read)
        except RingfenceError as error:
            log.warning("keys not read again", extra={"error": str(error)})

    async def caller(self, headers: Any) -> Caller:
        given = _credential(headers)
        if given is None:
            raise UnauthorizedError()
        if self._admin is not None and hmac.compare_digest(self._admin, digest_of(given)):
            return _ADMINISTRATOR
        parts = split(given)
        if parts is not None:
            return await self._by_key(*parts)
        if self._tokens is not None:
            return await self._by_token(self._tokens, given)
        raise UnauthorizedError("The key is not valid.", error="invalid_token")

    async def _by_key(self, key_id: str, secret: str) -> Caller:
        if key_id not in self._keys:
            await self._try(self._look_up)
        key = self._keys.get(key_id)
        # One answer for all: who guesses learns nothing of which keys there are or were.
        if not matches(key, secret) or key is None or not key.usable(self._clock_ms()):
            raise UnauthorizedError("The key is not valid.", error="invalid_token")
        return Caller(name=f"key {key.id}", scopes=key.scopes)

    async def _by_token(self, tokens: TokenVerifier, token: str) -> Caller:
        try:
            try:
                scopes = tokens.verify(token)
            except UnknownSigningKeyError:
                await self._try(tokens.refresh)
                if not tokens.ready:
                    raise StoreUnavailableError(
                        "the issuer's key set cannot be read: no token can be checked"
                    ) from None
                scopes = tokens.verify(token)
        except InvalidTokenError as error:
            raise UnauthorizedError(f"Not accepted: {error}.", error="invalid_token") from None
        return Caller(name="token", scopes=scopes)

    def describe(self) -> dict[str, Any]:
        return {"required": True, "keys": True, "tokens": self._tokens is not None}


def _credential(headers: Any) -> str | None:
    """What stands behind `Authorization: Bearer`, or in `X-API-Key`."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return str(value.strip())
    return headers.get("x-api-key") or None


def off_is_allowed(platform: PlatformSettings, settings: ServingSettings) -> bool:
    """Whether only this machine's own users can reach the server, and nothing but an embedded profile is behind it."""
    return platform.profile is Profile.EMBEDDED and is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_on(platform: PlatformSettings, settings: ServingSettings, auth: AuthSettings) -> bool:
    """Whether callers are asked for a key; raise SettingsError where that may not be left out."""
    allowed = off_is_allowed(platform, settings)
    if auth.mode is AuthMode.OFF and not allowed:
        raise SettingsError(
            f"RINGFENCE_AUTH_MODE: off is for the embedded profile on loopback, not for {platform.profile} on "
            f"{settings.host}; make a key with `ringfence keys create`"
        )
    return auth.mode is AuthMode.ON or (auth.mode is AuthMode.AUTO and not allowed)


def open_guard(
    platform: PlatformSettings, settings: ServingSettings, auth: AuthSettings, table: Callable[[], KeyTable]
) -> Guard:
    """The guard that the settings ask for; raise SettingsError where they may not be so."""
    return KeyGuard(table(), auth) if is_on(platform, settings, auth) else OpenGuard()


def needs(scope: Scope) -> Any:
    """A route's dependency: only callers with this scope, asked before a byte of the body is read."""

    async def check(request: Request) -> None:
        guard: Guard = request.app.state.services.guard
        caller = await guard.caller(request.headers)
        request.scope["ringfence.caller"] = caller.name
        if not caller.may(scope):
            raise ForbiddenError(scope=scope)

    check.__dict__["scope"] = scope
    return Depends(check)


def scope_of(route: Any) -> Scope | None:
    """The scope that a route needs, None where it is open."""
    needed = (_scope_in(dependency) for dependency in getattr(route, "dependencies", ()))
    return next((scope for scope in needed if scope is not None), None)


def is_needed(dependency: Any) -> bool:
    """Whether that is a dependency that `needs` made, which takes the request and gives nothing."""
    return _scope_in(dependency) is not None


def _scope_in(dependency: Any) -> Scope | None:
    found = getattr(dependency.dependency, "scope", None)
    return found if isinstance(found, Scope) else None

"""How commands of this machine call the REST server."""

from __future__ import annotations

import os
from collections.abc import Mapping

KEY_VARIABLES = ("RINGFENCE_API_KEY", "RINGFENCE_AUTH_ADMIN_KEY")


def key_headers(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header with the caller's key: RINGFENCE_API_KEY, else the administrator's; none where neither is set."""
    values = os.environ if environment is None else environment
    key = next((values[name] for name in KEY_VARIABLES if values.get(name)), None)
    return {"Authorization": f"Bearer {key}"} if key else {}

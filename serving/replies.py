"""Replies as JSON, encoded by msgspec."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

_encoder = msgspec.json.Encoder()


def json_reply(content: Any, status: int = 200) -> Response:
    """`content` as a JSON response; NaN and infinity become null."""
    return raw_json(_encoder.encode(content), status)


def raw_json(content: bytes, status: int = 200) -> Response:
    """A JSON text as a response."""
    return Response(content, status, media_type="application/json")

"""The parsers under bytes without meaning and documents gone wrong; `make fuzz-api` goes on with it for longer."""

from __future__ import annotations

from hypothesis import given, settings

from tests.parser_fuzz import bodies, check, refused_originals


def test_the_originals_are_accepted() -> None:
    """Every document that is mutated below is a good one."""
    assert refused_originals() == []


@settings(max_examples=600, deadline=None)
@given(bodies)
def test_every_body_is_read_or_refused(given_: tuple[type, bytes]) -> None:
    """Whatever comes is a valid request or bad input that can be told, and the quick way and the validator agree."""
    check(*given_)

"""`flint limits`: rates as they are typed."""

from __future__ import annotations

import pytest

from flint_cli.commands.limits import _rate
from flint_cli.exits import CommandFailed


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10/s", (10, 1.0)), ("100/m", (100, 60.0)), ("5/30s", (5, 30.0)), ("1/250ms", (1, 0.25)), ("9/d", (9, 86_400.0))],
)
def test_a_rate_is_runs_per_period(text: str, rate: tuple[int, float]) -> None:
    assert _rate(text) == rate


@pytest.mark.parametrize("text", ["10", "10/", "/s", "10/x", "-1/s", "1.5/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(CommandFailed, match="no rate"):
        _rate(text)

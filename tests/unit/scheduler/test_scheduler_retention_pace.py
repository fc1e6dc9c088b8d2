"""How much of its time retention takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_ops.config import RetentionSettings
from flint_scheduler.retention import rest_s


@pytest.mark.parametrize(
    ("deleted", "took_s", "expected"),
    [
        (100, 0.5, 0.5),  # a busy database: as long as it took
        (100, 0.01, 0.09),  # an idle one: a thousand runs a second
        (0, 0.2, 0.2),  # nothing could be deleted; it was work nevertheless
        (0, 0.0, 0.0),
    ],
)
def test_a_rest_is_for_a_share_of_the_time_and_for_the_most_a_second(
    deleted: int, took_s: float, expected: float
) -> None:
    settings = RetentionSettings(runs_per_s=1_000.0, work_share=0.5)

    assert rest_s(deleted, took_s, settings) == pytest.approx(expected)


@given(st.integers(0, 1_000), st.floats(0, 60), st.floats(1, 100_000), st.floats(0.01, 1))
def test_neither_bound_is_ever_passed(deleted: int, took_s: float, runs_per_s: float, work_share: float) -> None:
    settings = RetentionSettings(runs_per_s=runs_per_s, work_share=work_share)

    whole_s = took_s + rest_s(deleted, took_s, settings)

    assert took_s <= whole_s * work_share * (1 + 1e-9)
    assert deleted <= whole_s * runs_per_s * (1 + 1e-9)

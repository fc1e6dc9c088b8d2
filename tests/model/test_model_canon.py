"""The canonical form is a fair picture: one for each class, and nothing that could happen is left out by it."""

from __future__ import annotations

from collections import deque

import pytest

from model.scenarios import COMPLETE
from model.search import Model
from model.state import State

_STATES = 1500


def _next(model: Model, state: State) -> set[State]:
    return {model.canon(after) for _, _, after in model.successors(state)}


@pytest.mark.parametrize(
    "name",
    [
        "processes-1",
        "starts-1",
        "stores-1",
        "duties-2",
        "failover-2",
        "tail-2",
        "lanes-processes-1",
        "lanes-tail-2",
        "lanes-duties-2",
    ],
)
def test_a_state_and_its_picture_can_do_the_same(name: str) -> None:
    model = COMPLETE[name].model()
    first = model.canon(model.initial())
    seen, queue = {first}, deque([first])
    while queue and len(seen) < _STATES:
        for label, _, raw in model.successors(queue.popleft()):
            picture = model.canon(raw)
            if picture in seen:
                continue
            seen.add(picture)
            queue.append(picture)
            assert model.canon(picture) == picture, label
            # Steps that change nothing of the picture (a job that is refused anyway) are no difference.
            assert _next(model, raw) - {picture} == _next(model, picture) - {picture}, label

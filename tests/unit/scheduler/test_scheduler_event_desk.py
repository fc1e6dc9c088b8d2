"""What the event desk refuses before it asks the record."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_core.sizes import VALUE_DEPTH
from flint_ops.config import Settings
from flint_scheduler.events import EventDesk


@pytest.mark.parametrize("levels", [VALUE_DEPTH, 900])
async def test_an_event_nested_too_deeply_is_refused(levels: int) -> None:
    head = orjson.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t.a"})
    event = head[:-1] + b',"data":' + b"[" * levels + b"]" * levels + b"}"
    nothing: Any = None  # neither the record nor others are asked
    desk = EventDesk(nothing, nothing, nothing, Settings())
    response = await desk.store(pb.StoreEventsRequest(namespace="default", events=[event]))
    (result,) = response.results
    assert "nested too deeply" in result.error.message or b"nested too deeply" in result.error.SerializeToString()

"""The workflow test kit: runs a definition in this process, on the same core as Flint's workers, with a virtual clock.

    from flint_sdk.testing import Failure, simulate

    def test_a_failed_payment_is_repeated():
        result = simulate(
            "order.yaml",
            input={"orderId": "A-1"},
            stubs={"fetch": {"price": 10}, "pay": [Failure(503), {"paid": True}]},
        )
        assert result.output == {"paid": True}
        assert result.path == ["fetch", "pay", "confirm"]
        assert result.attempts("pay") == 2
        assert result.elapsed_s < 60

Nothing outside is called: a step that would needs a stub under its name. Waits pass at once. Expressions, retries,
timeouts, schemas and data flow are the engine's own, so a run ends as it would there (`noop` and `emit` execute as
they are). With pytest installed its plug-in collects files named `*.test.yaml`, and `flint test` runs the same.
"""

from flint_sdk.testing._kit import DefinitionRefused, SimulationError, simulate
from flint_sdk.testing._result import Attempt, CallMade, Result
from flint_sdk.testing._stubs import Approval, Event, Failure, Stub

__all__ = [
    "Approval",
    "Attempt",
    "CallMade",
    "DefinitionRefused",
    "Event",
    "Failure",
    "Result",
    "SimulationError",
    "Stub",
    "simulate",
]

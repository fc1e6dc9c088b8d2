"""What a RUN await is answered with: the end of the child, its start, or why it was not started.

The shape is that of `flint_core.effects.Await`, kind RUN. Outputs are put in as they are, without being read.
"""

from __future__ import annotations

import orjson

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import run_id_text
from flint_core.problems import Problem, ProblemType

__all__ = ["child_ended", "child_refused", "child_started"]

_STATES = {
    runs_pb2.Run.STATE_SUCCEEDED: "succeeded",
    runs_pb2.Run.STATE_FAILED: "failed",
    runs_pb2.Run.STATE_CANCELLED: "cancelled",
}


def child_ended(
    run_id: bytes, state: runs_pb2.Run.State.ValueType, output: bytes, error: runs_pb2.Problem | None
) -> bytes:
    """The child has ended. `output` is JSON, or empty for null."""
    head = orjson.dumps({"state": _STATES[state], "run": run_id_text(run_id)})
    if state == runs_pb2.Run.STATE_SUCCEEDED:
        return head[:-1] + b',"output":' + (output or b"null") + b"}"
    problem = Problem(ProblemType.CANCELLED, 499, "The run was cancelled")
    if error is not None and error.type:
        problem = Problem(error.type, error.status, error.title, error.detail, error.instance)
    return head[:-1] + b',"error":' + orjson.dumps(problem.to_json()) + b"}"


def child_started(run_id: bytes) -> bytes:
    """A detached child is accepted."""
    return orjson.dumps({"state": "started", "run": run_id_text(run_id)})


def child_refused(problem: Problem) -> bytes:
    """The child is not started, and will not be."""
    return orjson.dumps({"state": "refused", "error": problem.to_json()})

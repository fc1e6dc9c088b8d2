"""Steering runs with the blocking client: the surface of `AsyncControl` (see there for every method's promises)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flint_sdk._control import Batch, SentSignal, WorkflowHold
from flint_sdk._models import Run

if TYPE_CHECKING:
    from flint_sdk._client import AsyncFlint
    from flint_sdk._sync import _LoopThread

__all__ = ["SyncControl"]


class SyncControl:
    """The part of `Flint` that steers runs."""

    _client: AsyncFlint
    _thread: _LoopThread

    def terminate(self, run: str, reason: str = "", *, request_id: str = "") -> Run:
        """Ends a run at once, as CANCELLED; nothing is undone. Raises RunEnded."""
        return self._thread.run(self._client.terminate(run, reason, request_id=request_id))

    def pause(self, run: str, *, request_id: str = "") -> Run:
        """Pauses a run: at once when it holds no worker, else between two steps. Raises RunEnded, RunEnding."""
        return self._thread.run(self._client.pause(run, request_id=request_id))

    def resume(self, run: str, *, request_id: str = "") -> Run:
        """Lets a paused run go on. Raises RunNotPaused, RunEnded."""
        return self._thread.run(self._client.resume(run, request_id=request_id))

    def retry(self, run: str, *, request_id: str = "") -> Run:
        """Lets a run that failed, or was ended, go on where it stood. See `AsyncFlint.retry`."""
        return self._thread.run(self._client.retry(run, request_id=request_id))

    def reset(self, run: str, step: str | None = None, iteration: str = "", *, request_id: str = "") -> Run:
        """Takes a run back to just before a step, or to its beginning. See `AsyncFlint.reset`."""
        return self._thread.run(self._client.reset(run, step, iteration, request_id=request_id))

    def set_level(self, run: str, level: int, *, request_id: str = "") -> Run:
        """Sets the level (0 most urgent, 9 least) of a run that has not ended. Raises RunEnded."""
        return self._thread.run(self._client.set_level(run, level, request_id=request_id))

    def signal(self, run: str, name: str, payload: Any = None, *, signal_id: str = "") -> SentSignal:
        """Sends a signal. See `AsyncFlint.signal`."""
        return self._thread.run(self._client.signal(run, name, payload, signal_id=signal_id))

    def update(
        self, run: str, name: str, payload: Any = None, *, signal_id: str = "", timeout_s: float = 20.0
    ) -> SentSignal:
        """Sends a signal and returns when the run has taken it, or after the timeout. See `AsyncFlint.update`."""
        work = self._client.update(run, name, payload, signal_id=signal_id, timeout_s=timeout_s)
        return self._thread.run(work)

    def start_batch(self, action: str, **options: Any) -> Batch:
        """Starts a job over many runs. See `AsyncFlint.start_batch`."""
        return self._thread.run(self._client.start_batch(action, **options))

    def get_batch(self, batch: str) -> Batch:
        """A job as it is now, by name or id."""
        return self._thread.run(self._client.get_batch(batch))

    def list_batches(self, *, page_size: int = 50) -> Iterator[Batch]:
        """Jobs, newest first."""
        return self._thread.iterate(self._client.list_batches(page_size=page_size))

    def cancel_batch(self, batch: str) -> Batch:
        """Ends a job early; what it has done stays done."""
        return self._thread.run(self._client.cancel_batch(batch))

    def hold_workflow(self, workflow: str, reason: str = "") -> WorkflowHold:
        """Holds a workflow: its starts are accepted and stay queued; runs that have begun go on."""
        return self._thread.run(self._client.hold_workflow(workflow, reason))

    def release_workflow(self, workflow: str) -> bool:
        """Lets the starts of a workflow begin; False when it was not on hold."""
        return self._thread.run(self._client.release_workflow(workflow))

    def list_holds(self) -> list[WorkflowHold]:
        """The workflows that are on hold, by name."""
        return self._thread.run(self._client.list_holds())

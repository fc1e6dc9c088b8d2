"""What a worker declares: its limits, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_rpc.errors import FieldViolation, field_invalid
from flint_rpc.names import format_worker, is_label

__all__ = ["WorkerState", "check_card", "check_incarnation", "shown", "sorted_workers"]

WorkerState: TypeAlias = fleet_pb2.Worker.State.ValueType

_MAX_SLOTS = 10_000
_MAX_LABELS = 32
_MAX_LABEL = 63
_MAX_FUNCTIONS = 64
_MAX_TEXT = 255
_INCARNATION = re.compile(r"[0-9a-f]{32}")


def check_card(card: registry_pb2.WorkerCard) -> None:
    """Raises `Refused` that names every field that is missing or beyond its limit."""
    wrong: list[FieldViolation] = []
    for field, text in (("worker_id", card.worker_id), ("pool", card.pool), ("region", card.region)):
        if not is_label(text):
            wrong.append(FieldViolation(f"card.{field}", "is required: a DNS label of 1 to 63 characters"))
    if not 1 <= card.slots <= _MAX_SLOTS:
        wrong.append(FieldViolation("card.slots", f"must be 1 to {_MAX_SLOTS}"))
    if card.incarnation:
        wrong.append(FieldViolation("card.incarnation", "must be empty: the registry makes it"))
    for field, text in (("build_id", card.build_id), ("host", card.host)):
        if len(text) > _MAX_TEXT:
            wrong.append(FieldViolation(f"card.{field}", f"is longer than {_MAX_TEXT} characters"))
    if len(card.labels) > _MAX_LABELS:
        wrong.append(FieldViolation("card.labels", f"has more than {_MAX_LABELS} entries"))
    elif any(len(part) > _MAX_LABEL for pair in card.labels.items() for part in pair):
        wrong.append(FieldViolation("card.labels", f"has a name or value longer than {_MAX_LABEL} characters"))
    if len(card.functions) > _MAX_FUNCTIONS or any(len(name) > _MAX_LABEL for name in card.functions):
        limits = f"at most {_MAX_FUNCTIONS} names of {_MAX_LABEL} characters"
        wrong.append(FieldViolation("card.functions", f"is beyond its limits: {limits}"))
    if wrong:
        raise field_invalid(*wrong)


def check_incarnation(text: str, field: str = "incarnation") -> None:
    """Raises `Refused` when it is not 32 hexadecimal digits."""
    if not _INCARNATION.fullmatch(text):
        raise field_invalid((field, "is required: 32 hexadecimal digits, as Register answered"))


def shown(
    card: registry_pb2.WorkerCard,
    state: WorkerState,
    *,
    beat: registry_pb2.Beat | None = None,
    beat_ms: int = 0,
    ended: Timestamp | None = None,
) -> fleet_pb2.Worker:
    """A worker as the fleet's readers see it. `beat_ms`: when the beat came, Unix milliseconds."""
    worker = fleet_pb2.Worker(
        name=format_worker(card.incarnation),
        worker_id=card.worker_id,
        pool=card.pool,
        region=card.region,
        state=state,
        slots=card.slots,
        register_time=card.register_time,
        end_time=ended,
        build_id=card.build_id,
        host=card.host,
        pid=card.pid,
        labels=card.labels,
        functions=card.functions,
    )
    if beat is not None:
        worker.legs = beat.legs
        worker.cpu_cores = beat.cpu_cores
        worker.memory_bytes = beat.memory_bytes
        worker.heartbeat_time.FromMilliseconds(beat_ms)
    return worker


def sorted_workers(workers: Iterable[fleet_pb2.Worker]) -> list[fleet_pb2.Worker]:
    """By pool, then worker id; incarnations of one place in the order of their registration."""

    def order(worker: fleet_pb2.Worker) -> tuple[str, str, int, str]:
        return worker.pool, worker.worker_id, worker.register_time.ToMilliseconds(), worker.name

    return sorted(workers, key=order)

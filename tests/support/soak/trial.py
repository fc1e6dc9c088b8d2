"""One trial: a fresh stack, traffic, the faults of a seed, the judgement."""

from __future__ import annotations

import os
import time
from asyncio import TaskGroup
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flint_ops.failpoints import VARIABLE
from flint_sdk import AsyncFlint
from flint_stack.layout import Layout
from flint_stack.ports import Ports
from support.record_reader import Record
from support.soak.checker import judge
from support.soak.evidence import Evidence, gather
from support.soak.faults import Saboteur, draw_plan
from support.soak.links import Links
from support.soak.traffic import Traffic
from support.soak.world import soak_world
from support.stack import running_stack

__all__ = ["Verdict", "trial"]

_SETTINGS = {
    "registry": {"lease_ttl_s": 2, "heartbeat_interval_s": 0.5},
    "etcd": {"lease_ttl_s": 2},
    "limits": {"leg_losses": 1_000},
}
_END_WITHIN_S = 120.0


@dataclass
class Verdict:
    """What came of a trial. `wrong`: in words; empty when every promise held."""

    wrong: list[str] = field(default_factory=list)
    told: str = ""


async def trial(
    seed: int, folder: Path, tell: Callable[[str], None], *, length_s: float = 20.0, faults: int = 10
) -> Verdict:
    """What the seed's faults broke.

    `folder`: empty; the stack's data and logs stay there. `length_s`: how long faults begin. What the plan meets
    depends on the machine too, so that a seed which failed once may have to be tried again.
    """
    points = folder / "points"
    points.mkdir(parents=True)
    links = Links()
    layout = Layout.at(folder / "flint")

    def own(ports: Ports, name: str) -> dict[str, object]:
        dsn = f"postgresql://flint:{layout.load_secrets().postgres}@127.0.0.1:{ports.postgres}/flint"
        return links.settings_of(ports, name, dsn)

    environ = {**os.environ, VARIABLE: str(points)}
    began = time.monotonic()

    def say(what: str) -> None:
        tell(f"seed {seed} {time.monotonic() - began:6.1f} s  {what}")

    async with (
        soak_world() as world,
        running_stack(folder, workers=3, overrides=_SETTINGS, process_settings=own, environ=environ) as stack,
    ):
        record = Record(stack.settings.postgres)
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        try:
            traffic = Traffic(flint, world.url, seed)
            await traffic.prepare()
            saboteur = Saboteur(stack, links, points, say)
            async with TaskGroup() as group:
                group.create_task(traffic.run(length_s + 2.0))
                group.create_task(saboteur.run(draw_plan(seed, length_s, faults)))
            say(traffic.history.told())
            await traffic.settle(record, _END_WITHIN_S)
            evidence = Evidence(traffic.history, world, saboteur.stalls)
            await gather(evidence, flint, record)
            wrong = judge(evidence)
            told = f"{len(evidence.rows)} runs, {len(world.arrivals)} calls outside, {len(evidence.fired)} fires"
            say(f"{told}: {len(wrong)} wrong")
            return Verdict(wrong, told)
        finally:
            await flint.close()
            await record.close()
            await links.close()

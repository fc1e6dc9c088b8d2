"""`flint workers`: look at the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, ago, moment, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, Worker

app = typer.Typer(name="workers", help="Look at the fleet.", no_args_is_help=True)


@app.command("list")
def list_(
    context: typer.Context,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that ended within the last hour.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """List workers with their load."""

    async def command(client: AsyncFlint) -> list[Worker]:
        return [worker async for worker in client.list_workers(pool=pool, show_ended=all_)]

    workers = with_client(context, command)
    if output is Format.JSON:
        print_json(workers)
        return
    rows = [
        (
            w.worker_id,
            w.incarnation,
            w.pool,
            w.region,
            "QUARANTINED" if w.quarantine_reason else w.state.value,
            f"{w.legs}/{w.slots}",
            ago(w.heartbeat_time),
            w.pid or "",
            f"{w.cpu_cores:.2f}",
            f"{w.memory_bytes // 2**20} MiB",
        )
        for w in workers
    ]
    columns = ("WORKER", "INCARNATION", "POOL", "REGION", "STATE", "LEGS", "HEARTBEAT", "PID", "CPU", "MEMORY")
    print_table(columns, rows, "No workers.")
    for worker in workers:
        if worker.quarantine_reason:
            until = f" until {moment(worker.quarantine_end_time)}" if worker.quarantine_end_time else ""
            print(f"{worker.worker_id} is quarantined{until}: {worker.quarantine_reason}.")


@app.command()
def drain(
    context: typer.Context,
    worker: Annotated[str, typer.Argument(help="The worker's id or incarnation.", metavar="WORKER")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Ask a worker to take no more legs, give back what it holds and end."""

    async def command(client: AsyncFlint) -> Worker:
        return await client.drain_worker(await _named(client, worker))

    drained = with_client(context, command)
    if output is Format.JSON:
        print_json(drained)
    else:
        print(f"{drained.worker_id or worker} {drained.state.value.lower()}")


@app.command()
def release(
    context: typer.Context,
    worker: Annotated[str, typer.Argument(help="The worker's id or incarnation.", metavar="WORKER")],
) -> None:
    """Lift a worker's quarantine before its end: it gets work again within seconds."""

    async def command(client: AsyncFlint) -> bool:
        return await client.release_worker(await _named(client, worker))

    released = with_client(context, command)
    print(f"{worker} is released" if released else f"{worker} is in no quarantine that ends")


async def _named(client: AsyncFlint, worker: str) -> str:
    """The worker's name, by its id or incarnation."""
    matching = [w async for w in client.list_workers() if worker in (w.worker_id, w.incarnation, w.name)]
    if len(matching) > 1:
        names = ", ".join(w.incarnation for w in matching)
        raise CommandFailed(f"{worker} is the id of several incarnations: {names}. Name one of them.")
    if not matching:
        raise CommandFailed(f"No live worker has the id or incarnation {worker}; `flint workers list` shows them.")
    return matching[0].name

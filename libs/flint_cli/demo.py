"""The demo of `flint up`: the example order-intake with its shop and its mail server, from start to the mail in the
box.

Its places (two ports, a database, a mail folder) are chosen once per data directory and kept in `demo/places.json`,
so that the settings, the children and the run agree. The usual ports are taken when they are free, else others.
"""

from __future__ import annotations

import asyncio
import json
import mailbox
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flint_cli.watchview import follow
from flint_ops.config import Settings
from flint_sdk import AsyncFlint, RunState
from flint_stack.child import WAVE_EXTRAS, ChildSpec
from flint_stack.errors import PortTaken, ProbeFailed
from flint_stack.layout import Layout
from flint_stack.ports import Counts, Ports, check_free
from flint_stack.probes import http_ready

__all__ = ["WORKFLOW", "DemoFailed", "demo_children", "demo_folder", "demo_settings", "run_demo"]

WORKFLOW: Final = "order-intake"
_EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / WORKFLOW
_API_PORT: Final = 7460
_MAIL_PORT: Final = 7461
_PROBE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Places:
    api_port: int
    mail_port: int

    @property
    def api(self) -> str:
        return f"127.0.0.1:{self.api_port}"

    @property
    def mail(self) -> str:
        return f"127.0.0.1:{self.mail_port}"


def demo_folder() -> Path | None:
    """The example's folder; None where Flint was installed without its examples."""
    return _EXAMPLE if (_EXAMPLE / "workflow.yaml").is_file() else None


def demo_settings(layout: Layout) -> Mapping[str, Any]:
    """Connections of the example, to be merged under the user's own settings. Chooses the places; call it first."""
    if demo_folder() is None:
        return {}
    places = _choose(layout)
    return {
        "connections": {
            "orders": {"kind": "sql", "url": f"sqlite:///{_database(layout)}"},
            "mail": {"kind": "smtp", "url": f"smtp://{places.mail}", "sender": "Shop <shop@example.com>"},
        }
    }


def demo_children(layout: Layout) -> Sequence[ChildSpec]:
    """The shop's API and the mail server as supervised children; no children where the example is not installed."""
    folder = demo_folder()
    if folder is None:
        return ()
    places = _read(layout) or _choose(layout)
    return (
        ChildSpec(
            name="demo-api",
            argv=(sys.executable, str(folder / "api.py"), "--listen", places.api),
            wave=WAVE_EXTRAS,
            address=places.api,
            ready=partial(http_ready, places.api, "/healthz"),
        ),
        ChildSpec(
            name="demo-mail",
            argv=(sys.executable, str(folder / "mail.py"), "--listen", places.mail, "--folder", str(_mail(layout))),
            wave=WAVE_EXTRAS,
            address=places.mail,
            ready=partial(_smtp_ready, places),
        ),
    )


class DemoFailed(Exception):
    """The demo did not come to its end; the message says why."""


async def run_demo(layout: Layout, settings: Settings, console: Console) -> None:
    """Applies and runs the example while its steps are shown, then shows what it left: rows of the table and the mail.

    Needs the children of `demo_children`. Raises FlintError, DemoFailed.
    """
    folder, places = demo_folder(), _read(layout)
    if folder is None or places is None:
        raise DemoFailed("the folder examples/order-intake of Flint's repository is not here")
    given = orjson.loads((folder / "input.json").read_bytes())
    given["api"] = f"http://{places.api}"
    async with AsyncFlint(settings.gateway.listen, layout.load_admin_key().token) as client:
        workflow = (await client.apply(folder / "workflow.yaml")).workflow
        console.print(
            f"\nDemo: {workflow.workflow_id} {workflow.version} calls an HTTP API, writes to SQL, sends an email."
        )
        handle = await client.start(workflow.workflow_id, given, version=workflow.version)
        ended = await follow(handle.watch(), console)
    if ended.state is not RunState.SUCCEEDED:
        why = f": {ended.error.detail or ended.error.title}" if ended.error else ""
        raise DemoFailed(f"run {handle.id} {ended.state.value.lower()}{why}")
    _show_outcome(layout, str(given["orderId"]), console)


def _show_outcome(layout: Layout, order: str, console: Console) -> None:
    with closing(sqlite3.connect(f"file:{_database(layout)}?mode=ro", uri=True)) as database:
        cursor = database.execute("SELECT * FROM orders ORDER BY order_id")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for column in cursor.description:
            table.add_column(str(column[0]).upper(), no_wrap=True)
        for row in cursor:
            table.add_row(*(str(value) for value in row))
    console.print(f"\nTable orders in {escape(str(_database(layout)))}:", highlight=False, soft_wrap=True)
    console.print(table)
    letters = [letter for letter in mailbox.Maildir(_mail(layout), create=False) if order in str(letter["Subject"])]
    if not letters:
        raise DemoFailed(f"no mail about {order} is in {_mail(layout)}")
    newest = max(letters, key=lambda letter: letter.get_date())
    text = f"Mail to {newest['To']}: «{newest['Subject']}» in {_mail(layout)}"
    console.print(escape(text), highlight=False, soft_wrap=True)


def _folder(layout: Layout) -> Path:
    return layout.root / "demo"


def _database(layout: Layout) -> Path:
    return _folder(layout) / "orders.db"


def _mail(layout: Layout) -> Path:
    return _folder(layout) / "mail"


def _read(layout: Layout) -> _Places | None:
    try:
        document = json.loads((_folder(layout) / "places.json").read_text())
        return _Places(int(document["api_port"]), int(document["mail_port"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # not chosen yet, or not readable any more: they are chosen again


def _choose(layout: Layout) -> _Places:
    for places in (_read(layout), _Places(_API_PORT, _MAIL_PORT)):
        if places is not None and _free(places):
            break
    else:
        api, mail = Ports.free(Counts(0, 0, 2)).worker_ops
        places = _Places(api, mail)
    folder = _folder(layout)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / "places.json.new"
    fresh.write_text(json.dumps(asdict(places)))
    fresh.replace(folder / "places.json")
    return places


async def _smtp_ready(places: _Places) -> None:
    """Returns when the mail server greets; else raises ProbeFailed."""
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", places.mail_port)
            try:
                greeting = await reader.readline()
                writer.write(b"QUIT\r\n")
                await writer.drain()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise ProbeFailed(f"smtp://{places.mail} cannot be reached: {error or 'no greeting'}") from None
    if not greeting.startswith(b"220"):
        raise ProbeFailed(f"what listens at {places.mail} does not speak SMTP")


def _free(places: _Places) -> bool:
    try:
        check_free([("the demo's API", places.api_port), ("the demo's mail server", places.mail_port)])
    except PortTaken:
        return False
    return True

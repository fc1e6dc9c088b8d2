"""`flint schedules`: a schedule with a calendar from a file, from its creation to its end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import orjson
import pytest

from support.house import House

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTHING = "do: [{nothing: {set: {}}}]"
HOLIDAY = (
    "BEGIN:VEVENT\r\nUID:1@test\r\nDTSTAMP:20260101T000000Z\r\nDTSTART;VALUE=DATE:20300102\r\nRRULE:FREQ=YEARLY\r\n"
)
FILE = f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//test//test//EN\r\n{HOLIDAY}END:VEVENT\r\nEND:VCALENDAR\r\n"


async def flint(house: House, *arguments: str, fails: bool = False) -> str:
    """What `flint schedules …` prints; with `fails`, what it complains of."""
    program = [sys.executable, "-c", "from flint_cli.main import main; main()"]
    process = await asyncio.create_subprocess_exec(
        *program, "schedules", *arguments,
        env={**os.environ, "FLINT_ADDRESS": house.stack.gateway, "FLINT_KEY": house.stack.admin_key},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert (process.returncode != 0) is fails, (out + error).decode()
    return (error if fails else out).decode()


async def test_a_schedule_by_commands(house: House, tmp_path: Path) -> None:
    name = await house.apply(NOTHING)
    file = tmp_path / "closed.ics"
    file.write_text(FILE, newline="")
    stored = await flint(house, "calendars", "put", "by-file", "--file", str(file), "--years", "9")
    assert stored.startswith("by-file stored; 1 rules")
    daily = ("--cron", "0 12 * * *", "--exclude", "by-file", "--overlap", "skip", "--max-runs", "3")
    created = orjson.loads(
        await flint(house, "create", "by-hand", name, *daily, "--input", '{"n": 1}', "--paused", "--output", "json")
    )
    assert (created["id"], created["input"], created["state"]) == ("by-hand", {"n": 1}, "PAUSED")
    times = orjson.loads(
        await flint(house, "preview", "by-hand", "--from", "2030-01-01", "--count", "2", "--output", "json")
    )
    assert [each["time"][:13] for each in times] == ["2030-01-01T12", "2030-01-03T12"]
    assert "by-hand resumed; next " in await flint(house, "resume", "by-hand")
    run = (await flint(house, "trigger", "by-hand")).strip()
    assert (await house.flint.wait(run, 60)).state == "SUCCEEDED"
    assert "by-hand" in await flint(house, "list")
    wrong = await flint(house, "create", "both", name, "--every", "PT1S", "--cron", "0 12 * * *", fails=True)
    assert "one of --every, --cron and --after" in wrong
    assert "by-hand deleted" in await flint(house, "delete", "by-hand")
    await house.flint.schedules.delete_calendar("by-file")

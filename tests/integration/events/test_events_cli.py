"""`flint events` and `flint approvals` as a person types them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from support.house import House

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def flint(house: House, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "flint"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "FLINT_ADDRESS": house.stack.gateway, "FLINT_KEY": house.stack.admin_key},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_events_published_and_watched(house: House, tmp_path: Path) -> None:
    kind = house.name("cli")
    code, out, err = await flint(house, "events", "publish", kind, "--data", '{"n": 1}', "--id", "a", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"id": "a", "source": "/cli", "created": True}]
    file = tmp_path / "events.jsonl"
    file.write_text(
        json.dumps({"type": kind, "source": "/file", "id": "b"}) + "\n\n" + json.dumps({"type": kind}) + "\n"
    )
    code, out, err = await flint(house, "events", "publish", "--file", str(file))
    assert code == 1
    assert "published" in out
    assert "event 2 was refused" in err and "source" in err
    code, out, err = await flint(
        house, "events", "watch", "--type", kind, "--cursor", "0.0", "--no-lifecycle", "--limit", "2", "-o", "json"
    )
    assert code == 0, err
    assert [json.loads(line)["event"]["id"] for line in out.splitlines()] == ["a", "b"]
    code, _, err = await flint(house, "events", "publish", kind, "--data", "{")
    assert code != 0 and "not JSON" in err


async def test_an_approval_from_the_list_to_the_answer(house: House) -> None:
    name = await house.apply("do:\n  - ask: {call: approval, with: {title: Ship it?, assignees: [ann]}}\n")
    handle = await house.flint.start(name, {})
    async with asyncio.timeout(60):
        while not [a async for a in house.flint.list_approvals(workflow=name)]:
            await asyncio.sleep(0.05)
    code, out, err = await flint(house, "approvals", "list", "--workflow", name, "--assignee", "ann")
    assert code == 0, err
    assert "Ship it?" in out and f"{handle.id}/" in out
    approval = next(word for word in out.split() if word.startswith(handle.id))
    code, out, err = await flint(house, "approvals", "show", approval)
    assert code == 0 and "OPEN" in out, err
    code, out, err = await flint(house, "approvals", "approve", approval, "--field", "size=3", "--by", "ann")
    assert (code, out.strip()) == (0, f"{approval} approved"), err
    result = await handle.result(60)
    assert (result["by"], result["fields"]) == ("ann", {"size": 3})
    code, _, err = await flint(house, "approvals", "reject", approval)
    assert code != 0 and "was approved by ann before" in err

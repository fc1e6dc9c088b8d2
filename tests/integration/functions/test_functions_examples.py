"""The examples of function workers in Python, Go and TypeScript, run as their READMEs say against a real Flint.

Go and TypeScript need their toolchains, and the network for their packages: without them the tests are skipped, and say
so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from support.house import House

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "examples"
PREPARE_S = 420.0
RUN_S = 120.0


def copied(name: str, folder: Path) -> Path:
    """The example without what was made from it before."""
    target = folder / name
    ignored = shutil.ignore_patterns("gen", "dist", "node_modules", ".tools", "__pycache__")
    shutil.copytree(EXAMPLES / name, target, ignore=ignored)
    return target


async def command(folder: Path, *arguments: str, timeout_s: float, **more: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PROTO": str(REPOSITORY / "proto"), **more}
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, "", f"{arguments} took longer than {timeout_s:g} s"
    return process.returncode or 0, out.decode(), err.decode()


async def prepare(folder: Path, *commands: tuple[str, ...]) -> None:
    """What needs the network: a failure there is no failure of Flint's."""
    for arguments in commands:
        code, out, err = await command(folder, *arguments, timeout_s=PREPARE_S)
        if code != 0:
            text = (out + err)[-1500:]
            network = ("dial tcp", "ENOTFOUND", "EAI_AGAIN", "ECONN", "i/o timeout", "took longer", "lookup ")
            if any(word in text for word in network):
                pytest.skip(f"SKIPPED, NOT TESTED: {' '.join(arguments)} could not fetch its packages: {text[-300:]}")
            raise AssertionError(f"{arguments} ended with {code}: {text}")


def connection(house: House) -> dict[str, str]:
    return {"FLINT_ADDRESS": house.stack.gateway, "FLINT_KEY": house.stack.admin_key}


async def test_python(house: House) -> None:
    folder = EXAMPLES / "functions-python"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "functions.py", cwd=folder, env={**os.environ, **connection(house)}
    )
    try:
        await house.flint.apply(folder / "workflow.yaml")
        handle = await house.flint.start("thumbnails", {"pictures": ["a.png", "bb.png"]})
        result = await handle.result(RUN_S)
        assert (result["name"], result["width"]) == ("bb.png", 64)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.skipif(shutil.which("go") is None, reason="SKIPPED, NOT TESTED: there is no Go on this machine")
async def test_go(house: House, tmp_path: Path) -> None:
    folder = copied("functions-go", tmp_path)
    await prepare(folder, ("sh", "generate.sh"), ("go", "build", "-o", "greet", "."))
    code, out, err = await command(folder, "./greet", timeout_s=RUN_S, **connection(house))
    assert code == 0, err
    assert json.loads(out) == {"greeting": "Hello Ada, from Go"}


@pytest.mark.skipif(shutil.which("npm") is None, reason="SKIPPED, NOT TESTED: there is no npm on this machine")
async def test_typescript(house: House, tmp_path: Path) -> None:
    folder = copied("functions-typescript", tmp_path)
    await prepare(
        folder,
        ("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"),
        ("npm", "run", "generate"),
        ("npm", "run", "build"),
    )
    code, out, err = await command(folder, "node", "dist/src/main.js", timeout_s=RUN_S, **connection(house))
    assert code == 0, err
    assert json.loads(out) == {"greeting": "Hello Ada, from TypeScript"}

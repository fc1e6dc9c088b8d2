"""The table of what of the language is tested where: complete, and naming only tests that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support.language_members import members

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "integration" / "language"
_CODE = re.compile(r"`([^`]+)`")
_SHORT = re.compile(r"([a-z]+)\[([a-z0-9-]+)\]")
_UNIT = re.compile(r"\.(?:days|hours|minutes|seconds|milliseconds)$")


def table() -> list[tuple[str, str]]:
    """First and last cell of each row."""
    rows: list[tuple[str, str]] = []
    for line in (ROOT / "docs" / "dsl-coverage.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) > 1 and cells[0] not in ("member", "construct"):
            rows.append((cells[0], cells[-1]))
    return rows


ROWS = table()
TESTS = sorted({name for _, cell in ROWS for name in _CODE.findall(cell)})


@cache
def cases(module: str) -> frozenset[str]:
    """Names of the cases of a table of the language's tests."""
    path = FOLDER / f"test_language_{module}.py"
    spec = importlib.util.spec_from_file_location(f"coverage_of_{module}", path)
    assert spec is not None and spec.loader is not None
    loaded: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return frozenset(loaded.CASES)


@cache
def functions(path: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_member_that_the_compiler_knows_has_a_row() -> None:
    # The units of a duration stand once, wherever a duration may.
    known = {name for name in members() if name.startswith("duration.") or not _UNIT.search(name)}
    listed = {name for first, _ in ROWS for name in _CODE.findall(first)}
    assert sorted(known - listed) == []


def test_no_row_is_about_a_member_that_is_gone() -> None:
    groups = {name.partition(".")[0] for name in members()}
    rows = [first for first, last in ROWS if "refused[" not in last]
    listed = {name for first in rows for name in _CODE.findall(first)}
    assert sorted(name for name in listed - members() if "." in name and name.partition(".")[0] in groups) == []


@pytest.mark.parametrize("first", [first for first, last in ROWS if not _CODE.search(last)])
def test_every_row_names_a_test(first: str) -> None:
    raise AssertionError(f"no test stands beside {first}")


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_is_named_exists(name: str) -> None:
    short = _SHORT.fullmatch(name)
    if short is not None:
        assert short[2] in cases(short[1])
        return
    path, _, function = name.partition("::")
    assert function in functions(path)

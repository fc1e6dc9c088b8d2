"""Machines for tests, as fixtures: the driver is in `support.machines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flint_core.problems import Problem
from flint_core.program import Program
from support.machines import Driver, down, program_of, start


@pytest.fixture(name="start")
def start_fixture() -> Callable[..., Driver]:
    return start


@pytest.fixture(name="run")
def run_fixture() -> Callable[..., Driver]:
    def run(*arguments: Any, **options: Any) -> Driver:
        return start(*arguments, **options).run()

    return run


@pytest.fixture(name="program_of")
def program_of_fixture() -> Callable[[str], Program]:
    return program_of


@pytest.fixture(name="down")
def down_fixture() -> Callable[..., Problem]:
    return down

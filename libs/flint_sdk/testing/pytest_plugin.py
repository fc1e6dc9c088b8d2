"""The pytest plug-in: collects `*.test.yaml` files of workflow tests, and gives tests `simulate` as a fixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flint_sdk.testing._kit import simulate
from flint_sdk.testing._result import Result
from flint_sdk.testing._spec import SpecError, TestCase, load_spec, run_case

__all__ = ["pytest_collect_file", "workflow"]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Files of workflow tests are ours."""
    if file_path.name.endswith(".test.yaml"):
        collected: pytest.Collector = WorkflowFile.from_parent(parent, path=file_path)
        return collected
    return None


class WorkflowFile(pytest.File):
    """One file of workflow tests."""

    def collect(self) -> Iterator[pytest.Item]:
        """Its tests."""
        try:
            tests = load_spec(self.path)
        except SpecError as error:
            raise self.CollectError(str(error)) from None
        for test in tests:
            yield WorkflowItem.from_parent(self, name=test.name, test=test)


class WorkflowItem(pytest.Item):
    """One workflow test."""

    def __init__(self, *, test: TestCase, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.test = test

    def runtest(self) -> None:
        """Runs it. Raises AssertionError with what differs."""
        wrong = run_case(self.test)
        if wrong:
            raise AssertionError("\n".join(wrong))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The differences alone: a trace of the kit's own code says nothing about the workflow."""
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it stands."""
        return self.path, None, self.name


@pytest.fixture
def workflow() -> Callable[..., Result]:
    """`simulate`, for tests that would rather have it as a fixture."""
    return simulate

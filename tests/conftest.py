"""Puts `tests/` on the path, so that suites share the package `support`; how they are spread over processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["pytester"]

# No example has a time limit, as a busy machine may stop anywhere; and the same examples are tried everywhere: the
# search for new ones is that of `make fuzz`.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

_SHARED: Final = "tests/integration/"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the longest go first, so that none is left alone at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(_SHARED))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`: a file's tests run in one process, and so do those of a folder that shares a running Flint."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByPlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return str(Path(file).parent) if file.startswith(_SHARED) else file

    config.option.loadscopereorder = False  # the order is that of the collection
    return ByPlace(config, log)

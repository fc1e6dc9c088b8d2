"""No imports between services, and none from a library to a service: read from the source, not from a linter's word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("flint_gateway", "flint_scheduler", "flint_registry", "flint_worker")
LIBRARIES = tuple(sorted(folder.name for folder in (REPOSITORY / "libs").glob("flint_*")))
ADAPTERS = ("flint_store", "flint_bus", "flint_coord", "flint_rpc")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*SERVICES, *LIBRARIES, include_external_packages=True)


def package(module: str) -> str:
    return module.partition(".")[0]


def crossings(graph: grimp.ImportGraph, sources: tuple[str, ...], targets: tuple[str, ...]) -> list[str]:
    """Imports from one of the sources to another package that is one of the targets."""
    return sorted(
        f"{module} imports {imported}"
        for module in graph.modules
        if package(module) in sources and not graph.is_module_squashed(module)
        for imported in graph.find_modules_directly_imported_by(module)
        if package(imported) in targets and package(imported) != package(module)
    )


def strings(path: Path) -> Iterator[str]:
    """Text constants of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            yield node.value


def test_every_package_is_looked_at(graph: grimp.ImportGraph) -> None:
    assert {folder.name for folder in (REPOSITORY / "services").glob("flint_*")} == set(SERVICES)
    assert {package(m) for m in graph.modules if not graph.is_module_squashed(m)} == {*SERVICES, *LIBRARIES}
    assert crossings(graph, ("flint_gateway",), ("flint_rpc",)), "the graph shows no imports at all"


def test_services_do_not_import_each_other(graph: grimp.ImportGraph) -> None:
    assert crossings(graph, SERVICES, SERVICES) == []


def test_libraries_do_not_import_services(graph: grimp.ImportGraph) -> None:
    assert crossings(graph, LIBRARIES, SERVICES) == []


def test_adapters_do_not_import_each_other(graph: grimp.ImportGraph) -> None:
    assert crossings(graph, ADAPTERS, ADAPTERS) == []


def test_the_record_is_out_of_reach_for_gateway_and_worker(graph: grimp.ImportGraph) -> None:
    for service in ("flint_gateway", "flint_worker"):
        chains = graph.find_shortest_chains(importer=service, imported="flint_store", as_packages=True)
        assert chains == set()


def test_no_service_is_imported_by_name_at_run_time() -> None:
    """`importlib` would get past the graph: no module of one service holds the name of another as a text."""
    for service in SERVICES:
        for path in (REPOSITORY / "services" / service).rglob("*.py"):
            for other in SERVICES:
                if other != service:
                    named = [text for text in strings(path) if text == other or text.startswith(f"{other}.")]
                    assert named == [], f"{path.name} of {service}"

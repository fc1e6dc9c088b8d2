"""`flint test`: run workflow tests without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, ExitCode, say
from flint_cli.output import Format, FormatOption, print_json
from flint_sdk.testing._spec import SpecError, TestCase, load_spec, run_case


def test(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; this folder unless told.", show_default=False)
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Run the workflow tests in files named *.test.yaml: on the engine's own core, with stubs and a virtual clock."""
    files = [file for path in paths or [Path()] for file in _files(path)]
    if not files:
        raise CommandFailed("there is no file named *.test.yaml here")
    results: list[dict[str, object]] = []
    broken = False
    for file in files:
        try:
            tests = load_spec(file)
        except SpecError as error:
            broken = True
            say(str(error))
            continue
        results += [_run(test, output) for test in tests]
    failed = sum(1 for result in results if result["differences"])
    if output is Format.JSON:
        print_json(results)
    else:
        print(f"{len(results) - failed} passed, {failed} failed")
    if failed or broken:
        raise typer.Exit(ExitCode.FAILED)


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.test.yaml")) if path.is_dir() else [path]


def _run(test: TestCase, output: Format) -> dict[str, object]:
    wrong = run_case(test)
    if output is not Format.JSON:
        print(f"{'FAIL' if wrong else 'ok  '}  {test.file}: {test.name}")
        for line in wrong:
            print(f"        {line}")
    return {"file": str(test.file), "name": test.name, "passed": not wrong, "differences": wrong}

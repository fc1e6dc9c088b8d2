"""Definitions: from text to program, with findings that say what is wrong and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flint_core.definition.context import Context
from flint_core.definition.findings import DefinitionLimits, Finding, Guarded, Rule, Severity
from flint_core.definition.reader import ReadError, read
from flint_core.definition.resources import Resource
from flint_core.definition.workflow import compile_workflow
from flint_core.program import Program

__all__ = ["Compiled", "DefinitionLimits", "Finding", "Guarded", "Resource", "Rule", "Severity", "compile_definition"]


class Compiled(NamedTuple):
    """What came of a definition. `program` is None exactly when a finding is an error, or `needs` has entries.

    `needs`: texts that the definition refers to and that were not in `resources`. `guarded`: expressions outside the
    fast path, in document order: nothing but a guarded jq can tell whether they compile.
    """

    program: Program | None
    findings: list[Finding]
    needs: tuple[Resource, ...] = ()
    guarded: tuple[Guarded, ...] = ()


def compile_definition(
    source: str | bytes, limits: DefinitionLimits | None = None, resources: Mapping[str, bytes] | None = None
) -> Compiled:
    """Compile a definition in YAML 1.2 or JSON. Never raises for what an author wrote; findings come in document order.

    `resources`: the texts that it refers to, by address. Nothing is fetched here: fetch what `needs` names and compile
    again with all of it, until nothing is needed (a text may refer to further ones).

    Expressions outside the fast path are not compiled here: check `guarded` with a guarded jq as well.
    """
    bounds = limits or DefinitionLimits()
    try:
        root = read(source, bounds)
    except ReadError as error:
        finding = Finding(Severity.ERROR, error.rule, error.message, "/", error.line, error.column)
        return Compiled(None, [finding])
    context = Context(root, bounds, resources)
    program = compile_workflow(context, root.plain())
    findings = sorted(context.findings, key=lambda finding: (finding.line, finding.column))
    # Through the encoding and back, so that what is linted here is exactly what a worker will execute.
    compiled = None if program is None else Program.decode(program.encode())
    guarded = sorted(context.guarded.values(), key=lambda each: (each.line, each.column))
    return Compiled(compiled, findings, tuple(context.needs.values()), tuple(guarded))

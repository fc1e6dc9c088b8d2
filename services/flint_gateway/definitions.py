"""Checks definitions at apply: compiles them, then has every expression compiled by guarded jq.

Compiling runs in a thread, one at a time, so that a large definition delays other definitions and not the starts. What
a definition refers to (functions of catalogs, schemas) is read between two compilations, while others compile. The
jq processes are started by the first definition that needs them. A refusal names line, column, pointer and message of
each finding as a BadRequest field violation with the field `source:<line>:<column>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc

from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_core.definition import Compiled
from flint_core.definition.findings import DefinitionLimits, Finding, Guarded, Rule, Severity
from flint_core.definition.reader import read
from flint_core.program import Program
from flint_jq.errors import EvaluatorsBusy
from flint_jq.pool import EvaluatorPool
from flint_ops.config import GatewaySettings, LimitSettings
from flint_ops.resources import ResourceLimits, ResourceReader, compile_with_resources
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, component_unavailable

__all__ = ["Checked", "DefinitionChecker", "finding_message"]

_WAITING = 16
_TIMEOUT_S = 60.0
_VIOLATIONS = 100


@dataclass(frozen=True, slots=True)
class Checked:
    """A definition that may be stored, and its warnings."""

    program: Program
    encoded: bytes
    warnings: list[Finding]


class DefinitionChecker:
    """See the module. `close` ends the jq processes and the connections."""

    def __init__(self, limits: LimitSettings, settings: GatewaySettings) -> None:
        self._reader = ResourceReader(
            ResourceLimits(settings.resource_bytes, settings.resource_s, settings.allow_private_addresses)
        )
        self._limits = DefinitionLimits(definition_bytes=limits.definition_bytes)
        self._pool = EvaluatorPool(
            1, limits.evaluate_ms, limits.evaluate_bytes, limits.payload_bytes, patience=limits.evaluate_patience
        )
        self._pool_started = False
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def close(self) -> None:
        """Ends the jq processes and the connections."""
        await self._reader.close()
        if self._pool_started:
            await self._pool.close()

    async def check(self, source: str, namespace: str) -> Checked:
        """Raises `Refused`: DEFINITION_INVALID, DEFINITION_UNSUPPORTED, or that it could not be checked now."""
        if self._waiting >= _WAITING:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_QUEUE_FULL,
                f"{self._waiting} definitions wait to be checked already",
                retry_after_s=1.0,
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                compiled = await compile_with_resources(source, self._limits, self._reader, self._turn)
                async with self._turn:
                    return await self._check(compiled, source, namespace)
        except TimeoutError:
            raise component_unavailable("definition checker", f"no result within {_TIMEOUT_S:g} s") from None
        finally:
            self._waiting -= 1

    async def warnings(self, source: str, faults: list[tuple[str, str, str]]) -> list[Finding]:
        """Warnings for (rule, message, pointer), with line and column."""
        placed = await asyncio.to_thread(self._place, source, faults) if faults else []
        return [replace(finding, severity=Severity.WARNING) for finding in placed]

    async def refuse(self, source: str, faults: list[tuple[str, str, str]]) -> None:
        """Raises `Refused` for (rule, message, pointer), if there are any."""
        if faults:
            raise _refused(await asyncio.to_thread(self._place, source, faults))

    async def _check(self, compiled: Compiled, source: str, namespace: str) -> Checked:
        program = compiled.program
        errors = [finding for finding in compiled.findings if finding.severity == Severity.ERROR]
        warnings = [finding for finding in compiled.findings if finding.severity == Severity.WARNING]
        if program is None or errors:
            raise _refused(errors)
        if program.namespace != namespace:
            message = f"is '{program.namespace}', but the definition is applied to namespace '{namespace}'"
            faults = [(Rule.INVALID_VALUE, message, "/document/namespace")]
            raise _refused(await asyncio.to_thread(self._place, source, faults))
        refused = await self._check_expressions(compiled.guarded)
        if refused:
            raise _refused(refused)
        return Checked(program, program.encode(), warnings)

    def _place(self, source: str, faults: list[tuple[str, str, str]]) -> list[Finding]:
        """Findings for (rule, message, pointer), with line and column."""
        root = read(source, self._limits)
        return [
            Finding(Severity.ERROR, rule, message, pointer, *root.place(pointer, key=True))
            for rule, message, pointer in faults
        ]

    async def _check_expressions(self, expressions: Sequence[Guarded]) -> list[Finding]:
        if not expressions:
            return []
        refused = []
        try:
            if not self._pool_started:
                await self._pool.start()
                self._pool_started = True
            for expression in expressions:
                message = await self._pool.check(expression.source, expression.variables)
                if message is not None:
                    refused.append(expression.refused(message))
        except EvaluatorsBusy as error:
            raise component_unavailable("evaluator", str(error)) from None
        return refused


def finding_message(finding: Finding) -> workflows_pb2.Finding:
    """A finding as clients see it."""
    severity = (
        workflows_pb2.Finding.SEVERITY_ERROR
        if finding.severity == Severity.ERROR
        else workflows_pb2.Finding.SEVERITY_WARNING
    )
    return workflows_pb2.Finding(
        severity=severity,
        message=finding.message,
        pointer=finding.pointer,
        line=finding.line,
        column=finding.column,
        rule=finding.rule,
    )


def _refused(errors: Sequence[Finding]) -> Refused:
    unsupported = bool(errors) and all(error.rule == Rule.UNSUPPORTED for error in errors)
    first = errors[0] if errors else None
    place = f"line {first.line}, column {first.column}: " if first is not None and first.line else ""
    what = f"{first.pointer}: {first.message}" if first is not None else "it has no tasks"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_DEFINITION_UNSUPPORTED if unsupported else ErrorReason.ERROR_REASON_DEFINITION_INVALID,
        f"the definition is refused: {place}{what}{more}",
        field_violations=[
            FieldViolation(f"source:{error.line}:{error.column}", f"{error.pointer}: {error.message}")
            for error in errors[:_VIOLATIONS]
        ],
    )

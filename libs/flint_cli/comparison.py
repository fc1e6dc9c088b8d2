"""What applying a definition would change: compared with a version that is stored, as steps and as text."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flint_cli.exits import CommandFailed
from flint_cli.output import Format, print_json
from flint_sdk import Applied, AsyncFlint, Workflow, WorkflowNotFound

if TYPE_CHECKING:
    from flint_core.definition.differences import Change

__all__ = ["Comparison", "compare", "print_comparison"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A definition beside a stored version. `stored`: None when the workflow is new.

    `refused`: why applying it would be refused although it compiles; empty when it would not be. `unchanged`: its
    version is stored with this very content. `diff`: lines of a unified diff of the texts.
    """

    stored: Workflow | None
    unchanged: bool
    refused: str
    changes: tuple[Change, ...]
    diff: tuple[str, ...]


async def compare(client: AsyncFlint, applied: Applied, source: str, against: str | None) -> Comparison:
    """Compare a checked definition with what is stored. Raises CommandFailed when `against` is not stored."""
    from flint_core.definition.differences import differences  # noqa: PLC0415 - the compiler is slow to load

    new = applied.workflow
    stored = await _stored(client, new.workflow_id, against)
    if stored is None and against is not None:
        raise CommandFailed(f"there is no version {against} of {new.workflow_id} to compare with")
    same = stored if stored is not None and stored.version == new.version else None
    if same is None and stored is not None:
        same = await _stored(client, new.workflow_id, new.version)
    unchanged = same is not None and same.definition_hash == new.definition_hash
    refused = ""
    if same is not None and not unchanged:
        refused = f"version {new.version} is stored with other content: give this one a version of its own"
    if stored is None:
        return Comparison(None, unchanged, refused, (), ())
    diff = difflib.unified_diff(
        stored.source.splitlines(),
        source.splitlines(),
        f"{stored.workflow_id} {stored.version} (stored)",
        f"{new.workflow_id} {new.version}",
        lineterm="",
    )
    return Comparison(stored, unchanged, refused, tuple(differences(stored.source, source)), tuple(diff))


async def _stored(client: AsyncFlint, workflow: str, version: str | None) -> Workflow | None:
    try:
        return await client.get_workflow(workflow, version)
    except WorkflowNotFound:
        return None


def print_comparison(comparison: Comparison, applied: Applied, output: Format) -> None:
    """Say it: as JSON, or the changes and then the texts' difference."""
    workflow, stored = applied.workflow, comparison.stored
    if output is Format.JSON:
        print_json(
            {
                "workflow_id": workflow.workflow_id,
                "version": workflow.version,
                "definition_hash": workflow.definition_hash,
                "compared_with": stored.version if stored is not None else None,
                "unchanged": comparison.unchanged,
                "refused": comparison.refused or None,
                "changes": [asdict(change) for change in comparison.changes],
                "diff": list(comparison.diff),
                "findings": [asdict(finding) for finding in applied.findings],
            }
        )
        return
    name = f"{workflow.workflow_id} {workflow.version}"
    if comparison.refused:
        print(f"{name} would be refused: {comparison.refused}")
    elif comparison.unchanged:
        print(f"{name} would change nothing: it is stored already")
    else:
        print(f"{name} would be stored{', a new workflow' if stored is None else ''}")
    if stored is None:
        return
    if comparison.changes:
        print(f"\nChanges from {stored.version}:")
    elif comparison.diff:
        print(f"\nNothing but form differs from {stored.version}.")
    for change in comparison.changes:
        print(f"  {str(change).replace(chr(10), chr(10) + '  ')}")
    if comparison.diff:
        print()
        print("\n".join(comparison.diff))

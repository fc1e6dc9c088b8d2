"""Shows a watched run: a live tree on a terminal, plain lines elsewhere. Writes to stderr; results belong to stdout."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flint_cli.output import STATE_STYLES, seconds
from flint_cli.progress import RunProgress, StepProgress, brief
from flint_sdk import Run, StepState, WatchEvent

__all__ = ["follow"]

_MARKS = {
    StepState.SUCCEEDED: "✓",
    StepState.FAILED: "✗",
    StepState.SKIPPED: "–",
    StepState.CANCELLED: "■",
    StepState.WAITING: "◷",
}
_MAX_ROWS = 200
_REFRESHES_PER_S = 10


async def follow(events: AsyncIterator[WatchEvent], console: Console | None = None) -> Run:
    """Shows the events until the run has ended; answers the run as it ended. Raises FlintError.

    `console`: where to show them (standard error unless told); a live tree when it is a terminal.
    """
    progress = RunProgress()
    console = Console(stderr=True) if console is None else console
    if console.is_terminal and not console.is_dumb_terminal:
        await _live(events, progress, console)
    else:
        await _plain(events, progress, console)
    if progress.run is None:
        raise RuntimeError("a watch ended without showing its run")
    return progress.run


async def _plain(events: AsyncIterator[WatchEvent], progress: RunProgress, console: Console) -> None:
    async for event in events:
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        for line in progress.apply(event):
            print(f"{stamp} {line}", file=console.file, flush=True)


async def _live(events: AsyncIterator[WatchEvent], progress: RunProgress, console: Console) -> None:
    view = _View(progress)
    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=_REFRESHES_PER_S,
        vertical_overflow="ellipsis",
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        async for event in events:
            progress.apply(event)
        live.vertical_overflow = "visible"


class _View:
    """Draws the tree; one spinner for all running steps keeps them in step."""

    def __init__(self, progress: RunProgress) -> None:
        self._progress = progress
        self._spinner = Spinner("dots", style="blue")

    def render(self) -> RenderableType:
        """The tree as it is now."""
        run = self._progress.run
        if run is None:
            return Text("waiting for the run…", style="dim")
        tree = Tree(self._title(run), guide_style="dim")
        self._rows = 0
        for root in self._progress.roots():
            self._add(tree, root)
        notes = [Text(f"  {note}", style="dim") for note in self._progress.notes]
        return Group(tree, *notes)

    def _title(self, run: Run) -> Text:
        title = Text()
        title.append(f"{run.workflow_id} {run.version}", style="bold")
        title.append(f"  {run.id}", style="dim")
        title.append(f"  {run.state.value.lower()}", style=STATE_STYLES[run.state.value])
        if run.create_time is not None:
            end = run.end_time or datetime.now(UTC)
            title.append(f"  {seconds(max(0.0, (end - run.create_time).total_seconds()))}")
        if run.cancel_requested and not run.state.terminal:
            title.append("  cancel requested", style="magenta")
        if self._progress.interrupted:
            title.append("  reconnecting", style="yellow")
        return title

    def _add(self, tree: Tree, node: StepProgress) -> None:
        self._rows += 1
        if self._rows > _MAX_ROWS:
            if self._rows == _MAX_ROWS + 1:
                tree.add(Text("…", style="dim"))
            return
        branch = tree.add(self._row(node))
        for child in node.children:
            self._add(branch, child)

    def _row(self, node: StepProgress) -> RenderableType:
        step = node.last
        style = STATE_STYLES[step.state.value] if step.state is not StepState.UNSPECIFIED else ""
        text = Text(node.name)
        kind = step.function or step.kind
        if kind:
            text.append(f"  {kind}", style="dim")
        if step.state is StepState.RUNNING and step.start_time is not None:
            text.append(f"  {seconds(max(0.0, (datetime.now(UTC) - step.start_time).total_seconds()))}", style="dim")
        elif step.duration_s is not None:
            text.append(f"  {seconds(step.duration_s)}")
        if step.state is StepState.RUNNING:
            if step.progress_percent is not None:
                text.append(f"  {step.progress_percent:.0f} %", style="cyan")
            if step.progress_message:
                text.append(f"  {step.progress_message}", style="dim")
        if len(node.attempts) > 1 or step.attempt > 1:
            text.append(f"  attempt {step.attempt}", style="yellow")
        failed = next(
            (a for a in sorted(node.attempts.values(), key=lambda a: -a.attempt) if a.error is not None), None
        )
        if failed is not None:
            text.append(f"  {brief(failed)}", style="red" if step.state is StepState.FAILED else "dim")
        row = Table.grid(padding=(0, 1, 0, 0))
        mark: RenderableType = (
            self._spinner if step.state is StepState.RUNNING else Text(_MARKS.get(step.state, "·"), style=style)
        )
        row.add_row(mark, text)
        return row

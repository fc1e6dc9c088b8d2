"""`use.extensions`: tasks that run before and after others, put around them when the definition is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flint_core.definition.context import Context
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.origins import Origin
from flint_core.definition.reader import join_pointer
from flint_core.plan import Places
from flint_core.program import Task

if TYPE_CHECKING:
    from flint_core.definition.tasks import Scope, TaskCompiler

__all__ = ["EXTENDED", "Extension", "compile_extended", "matching", "parse_extensions"]

_ALL: Final = "all"
_OF_EXTENSIONS: Final = "extension"
_COMPOSITE: Final = frozenset({"do", "fork"})
_KINDS: Final = ("call", "emit", "for", "listen", "raise", "run", "set", "switch", "try", "wait")
EXTENDED: Final = (_ALL, "composite", _OF_EXTENSIONS, *_KINDS)


class Extension(NamedTuple):
    """One extension. `pointer` is its place in the text."""

    name: str
    extend: str
    when: Any
    before: Any
    after: Any
    pointer: str


def parse_extensions(context: Context, value: Any) -> tuple[Extension, ...]:
    """What `use.extensions` says: a list of objects with one member each, the extension's name."""
    if not isinstance(value, list):
        message = "'use.extensions' must be a list of named extensions, such as - logging: {extend: all, before: [...]}"
        context.error(Rule.WRONG_TYPE, message, "/use/extensions")
        return ()
    found: list[Extension] = []
    for position, entry in enumerate(value):
        place = join_pointer("/use/extensions", position)
        if not isinstance(entry, dict) or len(entry) != 1:
            context.error(Rule.WRONG_TYPE, "an extension is an object with one member, its name", place)
            continue
        name, body = next(iter(entry.items()))
        place = join_pointer(place, name)
        if any(name == other.name for other in found):
            context.error(Rule.DUPLICATE_KEY, f"'{name[:80]}' is the name of another extension", place, key=True)
            continue
        allowed = frozenset({"extend", "when", "before", "after"})
        members = context.mapping(body, place, f"the extension '{name[:80]}'", allowed, ("extend",))
        extend = members.get("extend")
        if extend is not None and extend not in EXTENDED:
            hint = suggestion(str(extend), EXTENDED) or f"; known are {', '.join(EXTENDED)}"
            message = f"'{str(extend)[:80]}' is nothing that can be extended{hint}"
            context.error(Rule.INVALID_VALUE, message, join_pointer(place, "extend"))
            continue
        if "before" not in members and "after" not in members:
            context.error(Rule.MISSING_FIELD, "an extension needs 'before', 'after' or both", place)
            continue
        if extend is not None:
            before, after = members.get("before"), members.get("after")
            found.append(Extension(name, extend, members.get("when"), before, after, place))
    return tuple(found)


def matching(
    extensions: tuple[Extension, ...], active: tuple[Extension, ...], kind: str | None
) -> tuple[Extension, ...]:
    """The extensions around a task of this kind, outermost first. `active`: those that the task itself belongs to."""
    if kind is None:
        return ()
    if active:
        return tuple(each for each in extensions if each.extend == _OF_EXTENSIONS and each not in active)
    composite = "composite" if kind in _COMPOSITE else kind
    return tuple(each for each in extensions if each.extend in (_ALL, composite) and each.extend != _OF_EXTENSIONS)


def compile_extended(
    compiler: TaskCompiler,
    chain: tuple[Extension, ...],
    index: int,
    name: str,
    body: Any,
    pointer: str,
    scope: Scope,
    local: tuple[str, ...],
    timed: bool,
) -> Task | None:
    """A task with the extensions of `chain` around it, the first one outermost. It has the task's pointer and name."""
    core = compiler.allocate(scope, pointer)
    if core is None:
        return None
    compiler.hidden.add(core)
    rest = chain[1:]
    if rest:
        inner = compile_extended(compiler, rest, core, name, body, pointer, scope, local, timed)
    else:
        inner = compiler.task(core, name, body, pointer, scope, local, timed)
    if inner is None:
        return None
    compiler.originals[index] = compiler.originals.get(core, inner)
    compiler.tasks[core] = replace(inner, condition=None)
    subject = inner.subject if rest else core
    context = compiler.context
    context.share_steps(core, index)
    extension = chain[0]
    around = _Around(compiler, extension, pointer, subject, timed)
    before = around.part("before", extension.before, "before")
    after = around.part("after", extension.after, "do")
    guard = None
    if extension.when is not None:
        context.task = index
        with context.extending():
            spot = join_pointer(extension.pointer, "when")
            guard = context.expression(extension.when, spot, Places("extended", ()).condition, "'when'")
    return Task(
        pointer=pointer,
        name=name,
        kind="extended",
        flow=inner.flow,
        condition=inner.condition,
        locals=local,
        scope=(*before, core, *after),
        core=len(before),
        guard=guard,
        subject=subject,
        source=inner.source,
    )


class _Around:
    """Compiles the tasks of one extension for one task."""

    def __init__(self, compiler: TaskCompiler, extension: Extension, pointer: str, subject: int, timed: bool) -> None:
        self.compiler = compiler
        self.extension = extension
        self.pointer = join_pointer(pointer, "extensions", extension.name)
        self.subject = subject
        self.timed = timed

    def part(self, word: str, value: Any, kind: str) -> tuple[int, ...]:
        """The tasks before or after as one task that holds them; nothing when there are none."""
        if value is None:
            return ()
        compiler, context = self.compiler, self.compiler.context
        step = join_pointer(self.pointer, word)
        context.origins.add(step, Origin(context.root, join_pointer(self.extension.pointer, word)))
        index = compiler.allocate(compiler.closed_scope(step), step)
        if index is None:
            return ()
        compiler.hidden.add(index)
        outer = compiler.enter_extension(self.extension, self.subject)
        try:
            with context.extending():
                scope = compiler.scope(value, step, f"'{word}'", None, (), self.timed)
        finally:
            compiler.leave_extension(outer)
        compiler.tasks[index] = Task(pointer=step, name=word, kind=kind, scope=scope, subject=self.subject, source="")
        return (index,)

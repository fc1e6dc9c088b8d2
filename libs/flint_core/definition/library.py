"""Functions that are tasks: those of `use.functions`, of catalogs, and of files named by their address.

A call of one compiles to a task with the function's task inside, compiled anew for each call, so that every use has
steps of its own: `…/functions/NAME` below the call. What the text of a catalog says is part of the program.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.origins import Origin
from flint_core.definition.reader import ReadError, join_pointer, read
from flint_core.definition.resources import resource_at
from flint_core.definition.versions import VERSION
from flint_core.functions import FUNCTIONS, NOT_CALLED

if TYPE_CHECKING:
    from flint_core.definition.tasks import TaskCompiler
    from flint_core.plan import Places

__all__ = ["BUILT_IN", "DEFAULT_CATALOG", "Definition", "Library", "Named"]

DEFAULT_CATALOG: Final = "default"
BUILT_IN: Final = "1.0.0"
"""The version of the functions of the default catalog, which are the runtime's own."""
_DEPTH: Final = 32
_CATALOGUED: Final = re.compile(r"(?P<name>[^:@]+):(?P<version>[^:@]+)@(?P<catalog>[^:@]+)")
_GITHUB: Final = re.compile(r"/(?P<owner>[^/]+)/(?P<repository>[^/]+)(?:/tree/(?P<branch>[^/]+)(?P<folder>/.*)?)?")
_CALL_ALONE: Final = frozenset({"call", "with", "metadata"})


class Definition(NamedTuple):
    """A function that is a task. `key` is unique; `name` is the name of its step."""

    key: str
    name: str
    body: Any
    origin: Origin

    @property
    def built_in(self) -> bool:
        """Whether it is nothing but a call of a built-in function with prepared arguments."""
        body = self.body
        if not isinstance(body, dict) or not body.keys() <= _CALL_ALONE or self.origin.label:
            return False
        metadata = body.get("metadata")
        known = isinstance(body.get("call"), str) and body["call"] in FUNCTIONS and body["call"] not in NOT_CALLED
        return known and isinstance(body.get("with", {}), dict) and not (metadata and "flint" in metadata)


class Named(NamedTuple):
    """What a call names: a function that is a task, or a built-in function by its plain name, or (neither) nothing
    that can be compiled now: a finding or a need says why."""

    definition: Definition | None = None
    function: str = ""


class Library:
    """The functions that calls may name beside the built-in ones."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._functions: dict[str, Any] = {}
        self._catalogs: dict[str, Any] = {}
        self._active: list[str] = []
        self._read: dict[str, Definition | None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions of `use`."""
        return tuple(self._functions)

    def declare(self, functions: Any, catalogs: Any) -> None:
        """What `use.functions` and `use.catalogs` say."""
        context = self._context
        known = functions if isinstance(functions, dict) else {}
        for name, body in context.mapping(functions, "/use/functions", "'use.functions'", known).items():
            place = join_pointer("/use/functions", name)
            if not isinstance(body, dict):
                context.error(Rule.WRONG_TYPE, f"a function is a task, so an object, not {kind_of(body)}", place)
            elif name in FUNCTIONS:
                message = f"'{name}' is a function of Flint's own; choose another name"
                context.error(Rule.INVALID_VALUE, message, place, key=True)
            elif any(mark in name for mark in "@/:"):
                message = f"'{name[:80]}': the name of a function has no @, / or :, which tell others apart"
                context.error(Rule.INVALID_VALUE, message, place, key=True)
            else:
                self._functions[name] = body
        known = catalogs if isinstance(catalogs, dict) else {}
        for name, catalog in context.mapping(catalogs, "/use/catalogs", "'use.catalogs'", known).items():
            place = join_pointer("/use/catalogs", name)
            if name == DEFAULT_CATALOG:
                message = "the catalog 'default' is the runtime's own; choose another name"
                context.error(Rule.INVALID_VALUE, message, place, key=True)
                continue
            members = context.mapping(catalog, place, "a catalog", frozenset({"endpoint"}), ("endpoint",))
            if "endpoint" in members:
                self._catalogs[name] = members["endpoint"]

    def find(self, name: str, pointer: str) -> Named | None:
        """What `name` means for a call at `pointer`; None when it is none of the library's."""
        if name in self._functions:
            self._context.used.add(("functions", name))
            origin = Origin(self._context.root, join_pointer("/use/functions", name))
            return Named(Definition(name, name, self._functions[name], origin))
        if "://" in name:
            return Named(self._from(name, name, name, pointer, None))
        if "@" in name:
            return self._catalogued(name, pointer)
        return None

    def _catalogued(self, name: str, pointer: str) -> Named:
        context = self._context
        match = _CATALOGUED.fullmatch(name)
        if match is None or not VERSION.fullmatch(match["version"]):
            message = f"'{name[:80]}' names no function of a catalog: write name:version@catalog, as in log:1.0.0@tools"
            context.error(Rule.REFERENCE, message, pointer)
            return Named()
        function, version, catalog = match["name"], match["version"], match["catalog"]
        if catalog == DEFAULT_CATALOG:
            known = sorted(FUNCTIONS.keys() - NOT_CALLED)
            if function not in known:
                hint = suggestion(function, known) or f"; it has {', '.join(known)}"
                message = f"the default catalog has no function '{function[:80]}'{hint}"
                context.error(Rule.REFERENCE, message, pointer)
                return Named()
            if version != BUILT_IN:
                message = f"the default catalog has '{function}' in version {BUILT_IN} alone"
                context.error(Rule.REFERENCE, message, pointer)
                return Named()
            return Named(function=function)
        if catalog not in self._catalogs:
            known = [*self._catalogs, DEFAULT_CATALOG]
            hint = suggestion(catalog, known) or "; define it in use.catalogs"
            context.error(Rule.REFERENCE, f"use.catalogs has no '{catalog[:80]}'{hint}", pointer)
            return Named()
        context.used.add(("catalogs", catalog))
        place = join_pointer("/use/catalogs", catalog, "endpoint")
        resource = resource_at(context, self._catalogs[catalog], place)
        if resource is None:
            return Named()
        uri = f"{_raw(resource.uri)}/functions/{function}/{version}/function.yaml"
        return Named(self._from(uri, name, function, pointer, resource.authentication))

    def _from(self, uri: str, key: str, name: str, pointer: str, authentication: Any) -> Definition | None:
        """The function of a file, read once; None while the file is needed, or when it is no function."""
        context = self._context
        data = context.resource(uri, authentication, pointer)
        if data is None:
            return None
        if uri in self._read:
            return self._read[uri]
        self._read[uri] = None
        try:
            root = read(data, context.limits)
        except ReadError as error:
            message = f"in {uri}, line {error.line}, column {error.column}: {error.message}"
            context.error(error.rule, message, pointer)
            return None
        body, inside = root.plain(), ""
        if isinstance(body, dict) and len(body) == 1 and isinstance(next(iter(body.values())), dict):
            inside = next(iter(body))  # a file may name its function, as a list of tasks does
            if inside in context.task_kinds:
                inside = ""
        if inside:
            body, inside = body[inside], join_pointer("", inside)
        self._read[uri] = Definition(key, name, body, Origin(root, inside, uri, pointer))
        return self._read[uri]

    def invoke(
        self,
        compiler: TaskCompiler,
        definition: Definition,
        members: dict[str, Any],
        pointer: str,
        local: tuple[str, ...],
        places: Places,
        timed: bool,
    ) -> dict[str, Any]:
        """What a call of a function that is a task adds to the common members."""
        context = self._context
        if definition.key in self._active:
            path = " → ".join([*self._active[self._active.index(definition.key) :], definition.key])
            message = f"functions may not call each other in a circle: {path}"
            context.error(Rule.REFERENCE, message, join_pointer(pointer, "call"))
            return {}
        if len(self._active) >= _DEPTH:
            message = f"functions call each other more than {_DEPTH} deep"
            context.error(Rule.LIMIT, message, join_pointer(pointer, "call"))
            return {}
        result: dict[str, Any] = {}
        if "with" in members:
            result["parameters"] = context.template(members["with"], join_pointer(pointer, "with"), places.body)
            local = ()
        self._active.append(definition.key)
        outer = compiler.enter_room(None)
        try:
            index = self.compile_step(compiler, definition, join_pointer(pointer, "functions"), local, timed)
        finally:
            compiler.leave_room(outer)
            self._active.pop()
        return result if index is None else {**result, "scope": (index,)}

    def compile_step(
        self, compiler: TaskCompiler, definition: Definition, pointer: str, local: tuple[str, ...], timed: bool
    ) -> int | None:
        """The function's task, as a step below `pointer`. Its index; None beyond the limit on tasks."""
        step = join_pointer(pointer, definition.name)
        self._context.origins.add(step, definition.origin)
        scope = compiler.closed_scope(step)
        index = compiler.allocate(scope, step)
        if index is not None:
            scope.tasks[definition.name] = index
            compiler.tasks[index] = compiler.extended(
                index, definition.name, definition.body, step, scope, local, timed
            )
        return index

    def check_unused(self, compiler: TaskCompiler) -> None:
        """Compile every function of `use` once more, by itself, so that what no task calls is checked too."""
        for name in self._functions:
            definition = Definition(
                name,
                name,
                self._functions[name],
                Origin(self._context.root, join_pointer("/use/functions", name)),
            )
            self._active.append(name)
            try:
                self.compile_step(compiler, definition, "/use/functions", (), True)
            finally:
                self._active.pop()


def _raw(uri: str) -> str:
    """The root under which a catalog's files are: for the page of a repository on GitHub, that of its raw files."""
    parts = urlsplit(uri)
    match = _GITHUB.fullmatch(parts.path.rstrip("/"))
    if parts.hostname != "github.com" or match is None:
        return uri.rstrip("/")
    branch, folder = match["branch"] or "main", (match["folder"] or "").rstrip("/")
    return f"https://raw.githubusercontent.com/{match['owner']}/{match['repository']}/{branch}{folder}"

"""Compiles tasks: the kind is told first, then the task is checked against that kind alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import jsonschema_rs

from flint_core.definition import unsupported
from flint_core.definition.approvals import check_approval
from flint_core.definition.arguments import expand_arguments
from flint_core.definition.context import Context, kind_of
from flint_core.definition.emitting import compile_emit
from flint_core.definition.explaining import faults_of
from flint_core.definition.extensions import Extension, compile_extended, matching
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.hints import task_hints
from flint_core.definition.library import Library
from flint_core.definition.listening import compile_listen
from flint_core.definition.messages import compile_messages
from flint_core.definition.policies import Reusable
from flint_core.definition.reader import join_pointer
from flint_core.definition.running import compile_run
from flint_core.functions import FUNCTIONS, NOT_CALLED, PROCESSES
from flint_core.functions.function import parse_call
from flint_core.plan import Places
from flint_core.program import Case, Catch, Flow, FlowKind, Task

__all__ = ["COMMON_MEMBERS", "TASK_MEMBERS", "Scope", "TaskCompiler"]

COMMON_MEMBERS: Final = frozenset({"if", "input", "output", "export", "timeout", "then", "metadata"})
TASK_MEMBERS: Final = {
    "call": frozenset({"call", "with"}),
    "do": frozenset({"do"}),
    "emit": frozenset({"emit"}),
    "for": frozenset({"for", "while", "do"}),
    "fork": frozenset({"fork"}),
    "listen": frozenset({"listen", "foreach"}),
    "raise": frozenset({"raise"}),
    "run": frozenset({"run"}),
    "set": frozenset({"set"}),
    "switch": frozenset({"switch"}),
    "try": frozenset({"try", "catch"}),
    "wait": frozenset({"wait"}),
}
_KINDS: Final = (*(kind for kind in TASK_MEMBERS if kind != "do"), *unsupported.TASKS, "do")
_RESERVED: Final = frozenset(
    {"context", "input", "output", "secrets", "task", "workflow", "runtime", "steps", "authorization"}
)
_DIRECTIVES: Final = (FlowKind.CONTINUE, FlowKind.EXIT, FlowKind.END)
CALLED_AS: Final = {"emit": "emit:", **{name: f"run: {name}" for name in PROCESSES}}
_VALIDATORS: Final = {name: jsonschema_rs.validator_for(spec.schema) for name, spec in FUNCTIONS.items()}


@dataclass
class Scope:
    """A list of tasks that `then` can jump within. `parent` is the scope around it."""

    parent: Scope | None
    pointer: str
    names: dict[str, int] = field(default_factory=dict)  # name → position
    tasks: dict[str, int] = field(default_factory=dict)  # name → task
    branches: bool = False


class TaskCompiler:
    """Turns lists of tasks into the program's flat list."""

    def __init__(self, context: Context, reusable: Reusable, library: Library) -> None:
        self.context = context
        self.reusable = reusable
        self.library = library
        self.tasks: list[Task | None] = [None]  # 0 is the workflow's
        self.scopes: dict[int, Scope] = {}
        self.hidden: set[int] = set()  # tasks that $steps does not name: made by the compiler around or beside others
        self.originals: dict[int, Task] = {}  # what an extension was put around
        # Steps of a function, and of an extension, have names of their own: `rooms` holds each one's room, and
        # `doors` the room around a room, whose names are seen from within (None: none).
        self.rooms: dict[int, int] = {}
        self.doors: dict[int, int | None] = {0: None}
        self.room = 0
        self.extensions: tuple[Extension, ...] = ()
        self.compensating = False
        self.place: tuple[str, str, str] | None = None  # where the tasks being compiled are executed
        self._within: tuple[Extension, ...] = ()
        self._subject = 0
        context.task_kinds = frozenset(TASK_MEMBERS) | frozenset(unsupported.TASKS)

    # --- places of steps

    def allocate(self, scope: Scope, pointer: str) -> int | None:
        """A place for one more task; None beyond the limit."""
        index = len(self.tasks)
        if index > self.context.limits.tasks:
            self.context.error(Rule.LIMIT, f"more than {self.context.limits.tasks} tasks", pointer)
            return None
        self.tasks.append(None)
        self.scopes[index] = scope
        self.rooms[index] = self.room
        return index

    @staticmethod
    def closed_scope(pointer: str) -> Scope:
        """A scope of one task, out of which `then` cannot jump."""
        return Scope(None, pointer)

    def enter_room(self, around: int | None) -> int:
        """From now on tasks belong to a room of their own. What to give back to `leave_room`."""
        outer = self.room
        self.room = len(self.doors)
        self.doors[self.room] = around
        return outer

    def leave_room(self, outer: int) -> None:
        """The room is complete."""
        self.room = outer

    def enter_extension(self, extension: Extension, subject: int) -> Any:
        """From now on tasks belong to an extension of the task `subject`. What to give back to `leave_extension`."""
        outer = (self.enter_room(self.room), self._within, self._subject)
        self._within, self._subject = (*self._within, extension), subject
        return outer

    def leave_extension(self, outer: Any) -> None:
        """The extension's tasks are complete."""
        room, self._within, self._subject = outer
        self.leave_room(room)

    def extended(
        self, index: int, name: str, body: Any, pointer: str, scope: Scope, local: tuple[str, ...], timed: bool
    ) -> Task | None:
        """Compile one task, with the extensions that apply to it."""
        chain = matching(self.extensions, self._within, self._kind_in(body)) if self.extensions else ()
        if not chain:
            return self.task(index, name, body, pointer, scope, local, timed)
        return compile_extended(self, chain, index, name, body, pointer, scope, local, timed)

    @staticmethod
    def _kind_in(body: Any) -> str | None:
        return next((kind for kind in _KINDS if kind in body), None) if isinstance(body, dict) else None

    def scope(
        self,
        value: Any,
        pointer: str,
        what: str,
        parent: Scope | None,
        local: tuple[str, ...],
        timed: bool,
        branches: bool = False,
    ) -> tuple[int, ...]:
        """Compile a list of named tasks. Their indexes, in order."""
        context = self.context
        if not isinstance(value, list) or not value:
            context.error(Rule.WRONG_TYPE, f"{what} must be a list of named tasks, such as - greet: {{...}}", pointer)
            return ()
        scope = Scope(parent, pointer, branches=branches)
        entries: list[tuple[str, Any, str]] = []
        for position, entry in enumerate(value):
            place = join_pointer(pointer, position)
            if not isinstance(entry, dict) or len(entry) != 1:
                message = "an entry of a task list is an object with one member, the task's name"
                context.error(Rule.WRONG_TYPE, message, place)
                continue
            name, body = next(iter(entry.items()))
            if name in scope.names:
                context.error(Rule.DUPLICATE_KEY, f"'{name[:80]}' is the name of another task in this list", place)
            if name in _DIRECTIVES:
                context.error(Rule.INVALID_VALUE, f"'{name}' is a flow directive and no name for a task", place)
            scope.names.setdefault(name, len(entries))
            entries.append((name, body, join_pointer(place, name)))
        indexes: list[int] = []
        for name, body, place in entries:
            index = self.allocate(scope, place)
            if index is None:
                break
            scope.tasks.setdefault(name, index)
            indexes.append(index)
            self.tasks[index] = self.extended(index, name, body, place, scope, local, timed)
        self._reachability(scope, [self.originals.get(index, self.tasks[index]) for index in indexes])
        return tuple(indexes)

    def task(
        self, index: int, name: str, body: Any, pointer: str, scope: Scope, local: tuple[str, ...], timed: bool
    ) -> Task | None:
        """Compile one task."""
        context = self.context
        kind = self._kind(name, body, pointer)
        if kind is None:
            return None
        members = context.mapping(body, pointer, f"a {kind} task", TASK_MEMBERS[kind] | COMMON_MEMBERS)
        places = Places(kind, local)
        context.task = index
        origin = context.origins.of(pointer)
        source = None if origin.pointer == pointer and not origin.label else "" if origin.label else origin.pointer
        task = Task(pointer=pointer, name=name, kind=kind, locals=local, subject=self._subject, source=source)
        around = self.place  # where the task around it is executed
        common: dict[str, Any] = {"flow": self._flow(members.get("then", FlowKind.CONTINUE), pointer, scope)}
        if "if" in members:
            place = join_pointer(pointer, "if")
            condition = members["if"]
            if isinstance(condition, bool):
                condition = "true" if condition else "false"
            common["condition"] = context.expression(condition, place, places.condition, "'if'")
        if "timeout" in members:
            place = join_pointer(pointer, "timeout")
            common["timeout"] = self.reusable.timeout(members["timeout"], place, places.body)
            timed = True
        if "metadata" in members:
            common |= task_hints(self, members["metadata"], join_pointer(pointer, "metadata"), kind, places, timed)
        common |= self.data_flow(members, pointer, places)
        compile_kind = getattr(self, f"_{kind}")
        specific: dict[str, Any] = compile_kind(members, pointer, scope, local, places, timed)
        if specific.get("function"):
            common["place"] = self.place
        self.place = around
        context.task = index
        if ("idempotency_key" in common or "cache_key" in common) and (
            "scope" in specific or specific.get("function") in ("approval", "workflow")
        ):
            message = "keys are for calls that a worker executes; put the hint on such a call"
            context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, "metadata", "flint"), key=True)
        return replace(task, **common, **specific)

    def _kind(self, name: str, body: Any, pointer: str) -> str | None:
        context = self.context
        if not isinstance(body, dict):
            context.error(Rule.WRONG_TYPE, f"the task '{name[:80]}' must be an object, not {kind_of(body)}", pointer)
            return None
        found = [kind for kind in _KINDS if kind in body]
        if "for" in found and "do" in found:
            found.remove("do")
        if not found:
            near = next((hint for key in body if key not in COMMON_MEMBERS and (hint := suggestion(key, _KINDS))), "")
            known = ", ".join(sorted(TASK_MEMBERS))
            message = f"the task '{name[:80]}' has no kind{near or f': it needs one of {known}'}"
            context.error(Rule.MISSING_FIELD, message, pointer)
            return None
        if found[0] in unsupported.TASKS:
            kind = found[0]
            context.unsupported(f"the task '{kind}'", unsupported.TASKS[kind], join_pointer(pointer, kind))
            return None
        if len(found) > 1:
            message = f"a task is of one kind; this one is {' and '.join(found)}"
            context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, found[1]), key=True)
            return None
        return found[0]

    def data_flow(self, members: dict[str, Any], pointer: str, places: Places) -> dict[str, Any]:
        """`input`, `output` and `export` of a task or of the workflow."""
        context = self.context
        result: dict[str, Any] = {}
        stations = (
            ("input", "from", places.condition),
            ("output", "as", places.output),
            ("export", "as", places.export),
        )
        for name, word, variables in stations:
            if name not in members:
                continue
            place = join_pointer(pointer, name)
            parts = context.mapping(members[name], place, f"'{name}'", frozenset({"schema", word}))
            if word in parts:
                what = f"'{name}.{word}'"
                result[f"{name}_{word}"] = context.transformation(
                    parts[word], join_pointer(place, word), variables, what
                )
            if "schema" in parts:
                spot = join_pointer(place, "schema")
                result[f"{name}_schema"] = context.schema(parts["schema"], spot, f"the schema of '{name}'")
        return result

    # --- flow

    def _flow(self, value: Any, pointer: str, scope: Scope) -> Flow:
        context = self.context
        place = join_pointer(pointer, "then")
        if not isinstance(value, str):
            context.error(Rule.WRONG_TYPE, f"'then' must be text, not {kind_of(value)}", place)
            return Flow()
        if value in _DIRECTIVES:
            return Flow(value)
        if scope.branches:
            message = "branches of a fork run side by side: 'then' may be continue, exit or end here"
            context.error(Rule.REFERENCE, message, place)
            return Flow()
        if value in scope.names:
            return Flow(FlowKind.GOTO, scope.names[value])
        known = [*scope.names, *_DIRECTIVES]
        hint = suggestion(value, known) or "; it must be continue, exit, end or a task of the same list"
        context.error(Rule.REFERENCE, f"'then' names '{value[:80]}', which is not in this list{hint}", place)
        return Flow()

    def _reachability(self, scope: Scope, tasks: list[Task | None]) -> None:
        if scope.branches or any(task is None for task in tasks):
            return
        open_positions, reached = [0], set[int]()
        while open_positions:
            position = open_positions.pop()
            task = tasks[position] if position < len(tasks) else None
            if task is None or position in reached:
                continue
            reached.add(position)
            flows = [case.flow for case in task.cases]
            if task.kind != "raise" and all(case.when is not None for case in task.cases):
                flows.append(task.flow)
            if task.condition is not None:
                flows.append(Flow())
            for flow in flows:
                if flow.kind == FlowKind.CONTINUE:
                    open_positions.append(position + 1)
                elif flow.kind == FlowKind.GOTO:
                    open_positions.append(flow.position)
        for position, task in enumerate(tasks):
            if task is not None and position not in reached:
                self.context.warn(Rule.UNREACHABLE, f"'{task.name}' is never reached", task.pointer, key=True)

    # --- kinds: what each adds to the common members

    def _call(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        context = self.context
        place = join_pointer(pointer, "call")
        function = context.text(members["call"], place, "'call'")
        arguments, argument_place = members.get("with", {}), join_pointer(pointer, "with")
        if not isinstance(arguments, dict):
            context.error(Rule.WRONG_TYPE, f"'with' must be an object, not {kind_of(arguments)}", argument_place)
            return {}
        result: dict[str, Any] = {}
        variables = places.arguments
        named = self.library.find(function, place)
        if named is not None:
            definition = named.definition
            if definition is not None and not definition.built_in:
                return self.library.invoke(self, definition, members, pointer, local, places, timed)
            if definition is not None:
                if "with" in members:
                    result["parameters"] = context.template(arguments, argument_place, places.body)
                    variables = places.arguments - set(local)
                argument_place = join_pointer("/use/functions", function, "with")
                function, arguments = definition.body["call"], definition.body.get("with", {})
            elif named.function:
                function = named.function
            else:
                return {}
        if function in unsupported.CALLS:
            context.unsupported(f"call: {function}", unsupported.CALLS[function], place)
            return {}
        custom = parse_call(function)
        if custom is None and (function not in FUNCTIONS or function in NOT_CALLED):
            self._unknown_function(function, place)
            return {}
        limited = timed or function == "noop" or (function == "approval" and "deadline" in arguments)
        if not limited:
            message = f"no timeout limits this call of '{function}': set `timeout` on it, around it or on the workflow"
            context.warn(Rule.NO_TIMEOUT, message, pointer, key=True)
        if function in ("noop", "approval"):
            variables -= {"secrets"}  # it hands its arguments back, or shows them
        if custom is None and context.authentications is not None:
            arguments = expand_arguments(context, context.authentications, function, arguments, argument_place)
        if function == "asyncapi":
            arguments = compile_messages(context, arguments, argument_place, variables)
        context.template(arguments, argument_place, variables)
        if custom is not None:
            arguments = {"name": custom.name, "version": custom.version, "arguments": arguments}
            return {"function": "function", "arguments": arguments, **result}
        self.check_arguments(function, arguments, argument_place)
        if function == "approval":
            check_approval(context, arguments, argument_place)
        return {"function": function, "arguments": arguments, **result}

    def _unknown_function(self, function: str, pointer: str) -> None:
        if function in PROCESSES or function == "emit":
            message = f"'{function}' is not called: it is a task of its own, `{CALLED_AS[function]}`"
            self.context.error(Rule.REFERENCE, message, pointer)
        elif "@" in function:
            message = (
                f"'{function[:80]}' names no function of a catalog: write name:version@catalog, the catalog "
                "by its name in use.catalogs"
            )
            self.context.error(Rule.REFERENCE, message, pointer)
        elif any(mark in function for mark in "/:"):
            message = (
                f"'{function[:80]}' names no function: one of your own workers is called by its name and perhaps a "
                "version, such as myteam/resize or myteam/resize:1.2.0 (lower case, at least one slash)"
            )
            self.context.error(Rule.REFERENCE, message, pointer)
        elif function:
            known = [*(FUNCTIONS.keys() - NOT_CALLED), *self.library.names]
            hint = suggestion(function, known) or f"; known are {', '.join(sorted(known))}"
            self.context.error(Rule.REFERENCE, f"there is no function '{function[:80]}'{hint}", pointer)

    def check_arguments(self, function: str, arguments: dict[str, Any], pointer: str, skip: int = 0) -> None:
        """Check a function's arguments, as they are written, against its schema.

        `skip`: how many members at the beginning of a place are not in the definition.
        """
        for fault in faults_of(_VALIDATORS[function], FUNCTIONS[function].schema, arguments):
            place = join_pointer(pointer, *fault.path[skip:])
            message = f"the arguments of '{function}': {fault.message}"
            self.context.error(Rule.ARGUMENTS, message, place, key=fault.key)

    def _do(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        return {"scope": self.scope(members["do"], join_pointer(pointer, "do"), "'do'", scope, local, timed)}

    def _set(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        return {
            "value": self.context.transformation(members["set"], join_pointer(pointer, "set"), places.body, "'set'")
        }

    def _emit(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        return compile_emit(self, members, pointer, places)

    def _listen(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        return compile_listen(self, members, pointer, scope, local, places, timed)

    def _run(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        return compile_run(self, members, pointer, places, timed)

    def _wait(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        place = join_pointer(pointer, "wait")
        return {"value": self.context.duration(members["wait"], place, places.body, "'wait'")}

    def _raise(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        place = join_pointer(pointer, "raise")
        parts = self.context.mapping(members["raise"], place, "'raise'", frozenset({"error"}), ("error",))
        if "error" not in parts:
            return {}
        return {"value": self.reusable.error(parts["error"], join_pointer(place, "error"), places.body)}

    def _switch(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        context = self.context
        place = join_pointer(pointer, "switch")
        entries = members["switch"]
        if not isinstance(entries, list) or not entries:
            context.error(
                Rule.WRONG_TYPE, "'switch' must be a list of named cases, such as - paid: {when, then}", place
            )
            return {}
        cases: list[Case] = []
        for position, entry in enumerate(entries):
            spot = join_pointer(place, position)
            if not isinstance(entry, dict) or len(entry) != 1:
                context.error(Rule.WRONG_TYPE, "a case is an object with one member, the case's name", spot)
                continue
            name, body = next(iter(entry.items()))
            spot = join_pointer(spot, name)
            parts = context.mapping(body, spot, f"the case '{name[:80]}'", frozenset({"when", "then"}), ("then",))
            flow = self._flow(parts.get("then", FlowKind.CONTINUE), spot, scope)
            when = None
            if "when" in parts:
                when = context.expression(parts["when"], join_pointer(spot, "when"), places.body, "'when'")
            if when is None and "when" not in parts and any(case.when is None for case in cases):
                message = f"the case '{name[:80]}' is a second one without 'when': only one can be the default"
                context.error(Rule.INVALID_VALUE, message, spot, key=True)
            cases.append(Case(name, flow, when))
        return {"cases": tuple(sorted(cases, key=lambda case: case.when is None))}  # the default is asked last

    def _for(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        context = self.context
        place = join_pointer(pointer, "for")
        parts = context.mapping(members["for"], place, "'for'", frozenset({"each", "at", "in"}), ("in",))
        each = self.variable(parts.get("each", "item"), join_pointer(place, "each"), "'each'")
        at = self.variable(parts.get("at", "index"), join_pointer(place, "at"), "'at'")
        if each == at:
            context.error(Rule.INVALID_VALUE, f"'each' and 'at' are both '{each}'", place)
        result: dict[str, Any] = {"each": each, "at": at}
        if "in" in parts:
            spot = join_pointer(place, "in")
            collection = parts["in"]
            if isinstance(collection, list):
                result["items"] = context.template(collection, spot, places.body)
            else:
                result["items"] = context.expression(collection, spot, places.body, "'in'")
        parallel = self._parallel(members, pointer)
        if parallel:
            result["parallel"] = parallel
        if "while" in members:
            inner = places.body | {each, at}
            spot = join_pointer(pointer, "while")
            result["condition_while"] = context.expression(members["while"], spot, inner, "'while'")
        if "do" not in members:
            context.error(Rule.MISSING_FIELD, "a for task needs 'do'", pointer)
            return result
        names = (*local, *(name for name in (each, at) if name not in local))
        spot = join_pointer(pointer, "do")
        return {**result, "scope": self.scope(members["do"], spot, "'do'", scope, names, timed)}

    def _parallel(self, members: dict[str, Any], pointer: str) -> int:
        """How many iterations of a `for` run at once; 0 when one follows the other."""
        metadata = members.get("metadata")
        hints = metadata.get("flint") if isinstance(metadata, dict) else None
        if not isinstance(hints, dict) or "parallel" not in hints:
            return 0
        context = self.context
        place = join_pointer(pointer, "metadata", "flint", "parallel")
        count = context.integer(hints["parallel"], place, "'parallel'", 1, context.limits.parallel)
        if "while" in members:
            message = "'while' asks before each iteration what the one before gave: it does not go with 'parallel'"
            context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, "while"), key=True)
        return count or 0

    def _fork(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        context = self.context
        place = join_pointer(pointer, "fork")
        parts = context.mapping(members["fork"], place, "'fork'", frozenset({"branches", "compete"}), ("branches",))
        compete = parts.get("compete", False)
        if not isinstance(compete, bool):
            context.error(Rule.WRONG_TYPE, "'compete' must be true or false", join_pointer(place, "compete"))
            compete = False
        if "branches" not in parts:
            return {}
        spot = join_pointer(place, "branches")
        branches = self.scope(parts["branches"], spot, "'branches'", scope, local, timed, branches=True)
        return {"scope": branches, "compete": compete}

    def _try(
        self, members: dict[str, Any], pointer: str, scope: Scope, local: tuple[str, ...], places: Places, timed: bool
    ) -> dict[str, Any]:
        context = self.context
        place = join_pointer(pointer, "catch")
        allowed = frozenset({"errors", "as", "when", "exceptWhen", "retry", "do"})
        if "catch" not in members:
            context.error(Rule.MISSING_FIELD, "a try task needs 'catch'", pointer)
        parts = context.mapping(members.get("catch", {}), place, "'catch'", allowed)
        name = self.variable(parts.get("as", "error"), join_pointer(place, "as"), "'as'")
        caught: dict[str, Any] = {"matches": {}, "name": name}
        if "errors" in parts:
            caught["matches"] = self.reusable.filter(parts["errors"], join_pointer(place, "errors"))
        for word, target in (("when", "when"), ("exceptWhen", "except_when")):
            if word in parts:
                spot = join_pointer(place, word)
                caught[target] = context.expression(parts[word], spot, places.body | {name}, f"'{word}'")
        if "retry" in parts:
            spot = join_pointer(place, "retry")
            retry = self.reusable.retry(parts["retry"], spot, places.body, name)
            caught["retry"] = retry
            timed = timed or (retry is not None and retry.limit_attempt is not None)
        result: dict[str, Any] = {}
        result["scope"] = self.scope(members["try"], join_pointer(pointer, "try"), "'try'", scope, local, timed)
        if "do" in parts:
            names = local if name in local else (*local, name)
            caught["scope"] = self.scope(parts["do"], join_pointer(place, "do"), "'catch.do'", scope, names, timed)
        return {**result, "catch": Catch(**caught)}

    def variable(self, value: Any, pointer: str, what: str) -> str:
        """The name of a variable that a task brings into sight."""
        name = self.context.text(value, pointer, what)
        if name in _RESERVED:
            self.context.error(Rule.INVALID_VALUE, f"${name} is a variable of Flint's; choose another name", pointer)
        elif name and not (name.isascii() and name.isidentifier()):
            message = f"{what} must be a name of letters, digits and underscores, without a $"
            self.context.error(Rule.INVALID_VALUE, message, pointer)
        return name or "_"

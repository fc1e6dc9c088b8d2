"""Random workflows that give the same result wherever they run: a seed in, valid definitions out.

    batch = generate_batch(seed=7, count=100)
    batch[3].document, batch[3].stubs, batch[3].children

All kinds of tasks that need no more of an outside than `random_world` gives. Deterministic by construction: no `now`,
no ids in outputs; within branches and parallel iterations nothing is exported and nothing fails unless it is caught
there; a racer of `compete` that shall lose waits for an hour; a listener hears only its own run's events, each of which
is emitted in a branch beside it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

__all__ = ["Workflow", "approves", "chosen_seed", "generate_batch"]

Task = dict[str, Any]
Body = list[dict[str, Task]]

LEAVES = 20
ERROR = "https://example.com/errors/"


@dataclass
class Workflow:
    """One definition. `http`, `approvals`: names of the steps that call these; `children`: workflows that it runs."""

    name: str
    seed: int
    document: dict[str, Any] = field(default_factory=dict)
    http: set[str] = field(default_factory=set)
    approvals: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    tasks: int = 0


@dataclass(frozen=True)
class Place:
    """What may stand here."""

    depth: int
    refs: tuple[str, ...] = ()  # steps that `$steps` may name
    variables: tuple[str, ...] = ()
    once: bool = True  # reached at most once in a run
    alone: bool = True  # nothing runs beside it
    tracked: bool = True  # steps here have one last output
    may_fail: bool = True


def chosen_seed(usual: int) -> int:
    """The seed of a test: the usual one, so that a change is judged by the same workflows as the one before; with
    FLINT_RANDOM_SEED that one, or with FLINT_RANDOM_SEED=random another each time (`make random`)."""
    asked = os.environ.get("FLINT_RANDOM_SEED", "")
    return Random().randrange(1_000_000) if asked == "random" else int(asked or usual)


def approves(step: str) -> bool:
    """What the person decides."""
    return zlib.crc32(step.encode()) % 2 == 0


def generate_batch(seed: int, count: int) -> list[Workflow]:
    """So many workflows; the first twenty run no others and may be run by the others."""
    leaves = min(count, LEAVES)
    batch: list[Workflow] = []
    for index in range(count):
        children = [] if index < leaves else [batch[n].name for n in range(leaves)]
        batch.append(_Generator(seed, index, children).workflow())
    return batch


class _Generator:
    def __init__(self, seed: int, index: int, children: Sequence[str]) -> None:
        self.random = Random(f"{seed}/{index}")
        self.made = Workflow(f"random-{seed}-{index}", seed)
        self.possible = children
        self.budget = min(40, max(2, round(self.random.lognormvariate(1.6, 0.7))))
        self.names = 0
        self.functions: dict[str, Task] = {}
        self.large = self.random.random() < 0.03

    def workflow(self) -> Workflow:
        if self.chance(0.2):
            self.function()
        body, _ = self.scope(Place(3), 12)
        if self.large:
            body.insert(0, {"big": {"call": "noop", "with": {"output": '${ "abcdefgh" * 40000 }'}}})
            body.insert(1, {"small": {"set": {"n": "${ length }"}}})
        use: dict[str, Any] = {}
        if self.functions:
            use["functions"] = self.functions
        if self.chance(0.15):
            use["extensions"] = [self.extension()]
        document: dict[str, Any] = {
            "document": {"dsl": "1.0.3", "namespace": "default", "name": self.made.name, "version": "1.0.0"},
            "timeout": {"after": "PT2H"},
            "do": body,
        }
        if use:
            document["use"] = use
        if self.chance(0.2):
            document["input"] = {
                "schema": {"document": {"type": "object", "required": ["url", "key"]}},
                "from": "${ {n: .n, t: .key[0:1]} }",
            }
        if self.chance(0.3):
            document["output"] = {"as": "${ {result: ., context: ($context | tojson | .[0:40])} }"}
        self.made.document = document
        self.made.tasks = self.names
        return self.made

    # --- pieces

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def number(self, place: Place) -> str:
        """An expression that gives a number, whatever its input."""
        choices = [
            "(.n? // 3)",
            "(.n? // 3) % 5 + 1",
            "[.. | numbers] | length",
            "tojson | length",
            "reduce range(4) as $k (0; . + $k)",
            "[limit(2; range(9))] | add",
            str(self.random.randint(-9, 99)),
        ]
        if place.variables:
            choices.append(f"[${self.random.choice(place.variables)}] | length")
        return self.random.choice(choices)

    def short(self, place: Place) -> str:
        """An expression that gives something small, whatever its input."""
        choices = [
            "tojson | .[0:30]",
            "type",
            "[.. | scalars] | length",
            "$input == .",
            "[1, {a: (tojson | length)}, null]",
            'try error("x") catch .',
            '(tojson | test("a+b?[0-9]"))',
            "def twice: . + .; tojson | .[0:9] | twice",
            "[.[]?] | length",
            "$context | tojson | .[0:20]",
            "$workflow.input.n",
            "(.n? // 7) / 4",
        ]
        choices += [f"$steps.{ref} | tojson | .[0:25]" for ref in place.refs[-3:]]
        choices += [f"{{v: ${v}}} | tojson | .[0:25]" for v in place.variables]
        return self.random.choice(choices)

    def condition(self, place: Place) -> str:
        return self.random.choice(
            [
                "true",
                "(tojson | length) % 2 == 0",
                ". != null",
                "(.n? // 0) > 2",
                "[.. | numbers] | length < 3",
                "false",
            ]
        )

    def members(self, place: Place) -> dict[str, Any]:
        members: dict[str, Any] = {"n": f"${{ {self.number(place)} }}"}
        if self.chance(0.6):
            members["v"] = f"${{ {self.short(place)} }}"
        if self.chance(0.3):
            members["t"] = f"at ${{ {self.number(place)} }}, ${{ {self.short(place)} }}."
        if self.chance(0.2):
            members["deep"] = {"list": [1, "x", f"${{ {self.short(place)} }}"], "none": None}
        return members

    def spend(self) -> bool:
        self.budget -= 1
        return self.budget > 0

    # --- scopes

    def scope(self, place: Place, most: int = 4) -> tuple[Body, Place]:
        """A list of tasks, and the place after it."""
        body: Body = []
        for _ in range(self.random.randint(1, most)):
            entries, place = self.task(place)
            body += entries
            if self.budget <= 0:
                break
        return body, place

    def task(self, place: Place) -> tuple[Body, Place]:
        self.spend()
        kinds: list[tuple[int, Callable[[Place], Body]]] = [
            (4, self.set_), (4, self.noop), (5, self.http), (2, self.wait), (1, self.switch), (1, self.emit),
        ]  # fmt: skip
        if place.may_fail:
            kinds += [(1, self.raise_)]
        if self.functions:
            kinds += [(3, self.call_function)]
        if place.depth > 0:
            kinds += [
                (1, self.do), (2, self.for_), (2, self.parallel), (2, self.fork), (1, self.compete), (2, self.caught),
                (2, self.timed_out), (1, self.failing_fork),
            ]  # fmt: skip
            if place.tracked:
                kinds += [(2, self.loop)]
            if place.once:
                kinds += [(2, self.flaky), (2, self.listening)]
        if place.once:
            kinds += [(1, self.approval)]
            if self.possible and place.may_fail:
                kinds += [(3, self.child)]
        make = self.random.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]
        entries = make(place)
        self.decorate(entries[-1], place, make)
        if place.tracked:
            place = replace(place, refs=(*place.refs, *(next(iter(entry)) for entry in entries)))
        return entries, place

    def decorate(self, entry: dict[str, Task], place: Place, make: Any) -> None:
        """What all tasks may have."""
        task = next(iter(entry.values()))
        if make in (self.switch, self.raise_):
            return
        if self.chance(0.1):
            task["if"] = self.condition(place)
        if self.chance(0.1) and "input" not in task:
            given = f"{{n: ({self.number(place)}), t: ({self.short(place)})}}".replace("$input", ".")
            task["input"] = {"from": f"${{ {given} }}"}
            if self.chance(0.3):
                task["input"]["schema"] = {"document": {"type": ["object", "array", "string", "number", "null"]}}
        if self.chance(0.1) and "output" not in task:
            task["output"] = {"as": f"${{ {{n: ({self.number(place)}), v: ({self.short(place)})}} }}"}
            wanted = ["array"] if place.may_fail and self.chance(0.1) else ["object"]
            task["output"]["schema"] = {"document": {"type": wanted}}
        if place.alone and self.chance(0.12):
            task["export"] = {"as": f"${{ {{last: ({self.short(place)}), n: ({self.number(place)})}} }}"}
        if self.chance(0.06) and "timeout" not in task:
            task["timeout"] = {"after": {"hours": 1}}
        if place.alone and place.may_fail and self.chance(0.05):
            task["metadata"] = {
                **task.get("metadata", {}),
                "flint": {
                    **task.get("metadata", {}).get("flint", {}),
                    "compensate": {"call": "noop", "with": {"output": "${ .output | type }"}},
                },
            }
        if place.alone and self.chance(0.02):
            task["then"] = self.random.choice(["exit", "end"])

    # --- tasks without others

    def set_(self, place: Place) -> Body:
        return [{self.name("s"): {"set": self.members(place)}}]

    def noop(self, place: Place) -> Body:
        given: dict[str, Any] = {"output": self.members(place)}
        if self.chance(0.3):
            given["delay_ms"] = self.random.randint(1, 20)
        if place.may_fail and self.chance(0.05):
            given["fail"] = {"status": self.random.choice([400, 503]), "title": "On demand"}
        return [{self.name("n"): {"call": "noop", "with": given}}]

    def http(self, place: Place) -> Body:
        name = self.name("h")
        self.made.http.add(name)
        path = f"/fail/{self.random.choice([404, 409, 500])}" if place.may_fail and self.chance(0.05) else "/ok"
        return [{name: self.request(f'$workflow.input.url + "{path}/{name}"', place)}]

    def request(self, endpoint: str, place: Place) -> Task:
        body = {"n": f"${{ {self.number(place)} }}", "v": f"${{ {self.short(place)} }}"}
        return {"call": "http", "with": {"method": "post", "endpoint": f"${{ {endpoint} }}", "body": body}}

    def wait(self, place: Place) -> Body:
        length: Any = {"milliseconds": self.random.randint(0, 30)}
        if self.chance(0.3):
            computed = "${ {milliseconds: ((.n? // 1) % 9)} | .milliseconds |= fabs }"
            length = self.random.choice(["PT0.01S", "PT0S", computed])
        return [{self.name("w"): {"wait": length}}]

    def emit(self, place: Place) -> Body:
        name = self.name("e")
        event = {"type": f"{self.made.name}.{name}", "data": {"n": f"${{ {self.number(place)} }}"}}
        return [{name: {"emit": {"event": {"with": event}}, "output": {"as": "${ .data }"}}}]

    def raise_(self, place: Place) -> Body:
        status = self.random.choice([400, 409, 500])
        error = {"type": f"{ERROR}{status}", "status": status, "title": f"n is ${{ {self.number(place)} }}"}
        name = self.name("r")
        return [{name: {"if": self.condition(place), "raise": {"error": error}}}]

    def switch(self, place: Place) -> Body:
        name, a, b, c = self.name("d"), self.name("s"), self.name("s"), self.name("s")
        cases = [{"first": {"when": self.condition(place), "then": a}}]
        if self.chance(0.5):
            cases.append({"second": {"when": self.condition(place), "then": b}})
        if self.chance(0.5):
            cases.append({"other": {"then": "continue" if self.chance(0.5) else b}})
        self.spend()
        return [
            {name: {"switch": cases}},
            {a: {"set": self.members(place), "then": c}},
            {b: {"set": self.members(place)}},
            {c: {"set": {"n": "${ .n? // 0 }", "from": "${ tojson | .[0:40] }"}}},
        ]

    def approval(self, place: Place) -> Body:
        name = self.name("a")
        self.made.approvals.add(name)
        given = {"title": name}
        return [{name: {"call": "approval", "with": given, "output": {"as": "${ {decision: .decision} }"}}}]

    def child(self, place: Place) -> Body:
        name = self.name("c")
        child = self.random.choice(list(self.possible))
        self.made.children.add(child)
        key = f'${{ $workflow.input.key + ".{name}" }}'
        given = {"url": "${ $workflow.input.url }", "key": key, "n": f"${{ {self.number(place)} }}"}
        run: dict[str, Any] = {"workflow": {"name": child, "version": "1.0.0", "input": given}}
        if self.chance(0.15):
            run["await"] = False
        return [{name: {"run": run}}]

    # --- functions and extensions

    def function(self) -> None:
        name = self.name("f")
        kind = self.random.choice(["do", "http", "set"])
        inside = Place(1, once=False, alone=False, tracked=False, may_fail=False)
        if kind == "http":
            task = self.request('$workflow.input.url + "/ok/function"', inside)
        elif kind == "set":
            task = {"set": self.members(inside)}
        else:
            task = {"do": self.scope(inside, 2)[0], "output": {"as": "${ {n: 1, v: (tojson | .[0:30])} }"}}
        self.functions[name] = task

    def call_function(self, place: Place) -> Body:
        function = self.random.choice(list(self.functions))
        name = self.name("g")
        if self.functions[function].get("call") == "http":
            self.made.http.add(name)
        return [{name: {"call": function, "with": {"n": f"${{ {self.number(place)} }}", "t": "given"}}}]

    def extension(self) -> Task:
        inside = Place(0, once=False, alone=False, tracked=False, may_fail=False)
        task: Task = {"extend": self.random.choice(["set", "call", "wait", "composite", "all"])}
        if self.chance(0.4):
            task["when"] = self.random.choice(['$task.name | test("[1357]$")', '$task.name != "s1"', "true"])
        for side in self.random.choice([("before",), ("after",), ("before", "after")]):
            if self.chance(0.5):
                task[side] = [{self.name("x"): {"set": self.members(inside)}}]
            else:
                task[side] = self.noop(inside)
        return {self.name("y"): task}

    # --- tasks of tasks

    def inner(self, place: Place, **changes: Any) -> Place:
        return replace(place, depth=place.depth - 1, **changes)

    def do(self, place: Place) -> Body:
        return [{self.name("do"): {"do": self.scope(self.inner(place))[0]}}]

    def for_(self, place: Place) -> Body:
        name = self.name("l")
        items = self.random.choice(["[1, 2]", '["a", "b", "c"]', "[range(3)]", "[]", "[{k: 1}, null]"])
        task: Task = {"for": {"each": f"x{self.names}", "at": f"i{self.names}", "in": f"${{ {items} }}"}}
        if self.chance(0.3):
            task["while"] = f"$i{self.names} < 2"
        inside = self.inner(place, once=False, variables=(*place.variables, f"x{self.names}", f"i{self.names}"))
        task["do"] = self.scope(inside, 3)[0]
        return [{name: task}]

    def parallel(self, place: Place) -> Body:
        name = self.name("p")
        each, at = f"x{self.names}", f"i{self.names}"
        inside = self.inner(place, once=False, alone=False, tracked=False, may_fail=False)
        inside = replace(inside, variables=(*place.variables, each, at))
        task = {
            "metadata": {"flint": {"parallel": self.random.randint(1, 4)}},
            "for": {"each": each, "at": at, "in": f"${{ [range({self.random.randint(0, 5)})] }}"},
            "do": self.scope(inside, 2)[0],
        }
        return [{name: task}]

    def fork(self, place: Place) -> Body:
        name = self.name("k")
        inside = self.inner(place, alone=False, may_fail=False)
        branches: Body = []
        for _ in range(self.random.randint(2, 4)):
            branches += [{self.name("b"): {"do": self.scope(inside, 3)[0]}}]
        return [{name: {"fork": {"branches": branches}}}]

    def compete(self, place: Place) -> Body:
        name, win, lose = self.name("k"), self.name("b"), self.name("b")
        inside = self.inner(place, alone=False, may_fail=False)
        never = self.random.choice([{"wait": "PT1H"}, {"listen": {"to": {"one": {"with": {"type": "never"}}}}}])
        winner = {"do": self.scope(replace(inside, depth=0), 2)[0]}
        branches = [{win: winner}, {lose: never}]
        self.random.shuffle(branches)
        return [{name: {"fork": {"compete": True, "branches": branches}}}]

    def failing_fork(self, place: Place) -> Body:
        """A branch fails while the others wait."""
        name, bad, slow, attempt = self.name("k"), self.name("r"), self.name("w"), self.name("t")
        error = {"type": f"{ERROR}branch", "status": 422}
        branches = [{slow: {"wait": "PT1H"}}, {bad: {"do": [{self.name("r"): {"raise": {"error": error}}}]}}]
        self.random.shuffle(branches)
        fork = {name: {"fork": {"branches": branches}}}
        handler = [{self.name("s"): {"set": {"at": "${ $error.instance }", "n": "${ $error.status }"}}}]
        return [{attempt: {"try": [fork], "catch": {"do": handler}}}]

    def caught(self, place: Place) -> Body:
        name = self.name("t")
        retry = self.chance(0.3)
        inside = self.inner(place, may_fail=True, once=place.once and not retry)
        body = self.scope(inside, 3)[0]
        catch: Task = {"as": "why"} if self.chance(0.5) else {}
        variable = "why" if catch else "error"
        if place.may_fail and self.chance(0.3):
            catch["errors"] = {"with": {"status": self.random.choice([400, 409, 500, 503])}}
        if place.may_fail and self.chance(0.2):
            catch["when"] = f"${variable}.status >= 409"
        if retry:
            catch["retry"] = {"delay": {"milliseconds": 10}, "limit": {"attempt": {"count": self.random.randint(1, 3)}}}
        shown = {"at": f"${{ ${variable}.instance }}", "n": f"${{ ${variable}.status }}"}
        handler: Body = [{self.name("s"): {"set": shown}}]
        if self.chance(0.3):
            handler += self.scope(replace(place, depth=0), 2)[0]
        catch["do"] = handler
        return [{name: {"try": body, "catch": catch}}]

    def flaky(self, place: Place) -> Body:
        name, inner = self.name("t"), self.name("h")
        self.made.http.add(inner)
        endpoint = f'$workflow.input.url + "/flaky/{self.random.randint(1, 2)}/" + $workflow.input.key + "/{inner}"'
        retry = {"delay": {"milliseconds": 5}, "limit": {"attempt": {"count": 5}}}
        if self.chance(0.5):
            retry["backoff"] = {"exponential": {}}
        catch = {"errors": {"with": {"status": 503}}, "retry": retry}
        return [{name: {"try": [{inner: self.request(endpoint, place)}], "catch": catch}}]

    def timed_out(self, place: Place) -> Body:
        attempt, slow = self.name("t"), self.name("w")
        task: Task = {"wait": "PT1H"} if self.chance(0.5) else {"call": "noop", "with": {"delay_ms": 3_600_000}}
        task["timeout"] = {"after": {"milliseconds": self.random.randint(5, 40)}}
        handler = [{self.name("s"): {"set": {"late": "${ $error.status }"}}}]
        return [{attempt: {"try": [{slow: task}], "catch": {"errors": {"with": {"status": 408}}, "do": handler}}}]

    def loop(self, place: Place) -> Body:
        """Back to an earlier task, two or three rounds."""
        rounds = self.random.randint(2, 3)
        inside = replace(place, once=False, depth=0)
        first, count, again = self.name("s"), self.name("s"), self.name("d")
        body: Body = [{first: {"set": self.members(inside)}}]
        body += self.scope(inside, 2)[0]
        counted = {"set": {"n": f"${{ ($steps.{count}.n // 0) + 1 }}"}}
        decide = {"switch": [{"more": {"when": f"$steps.{count}.n < {rounds}", "then": first}}]}
        after = {self.name("s"): {"set": {"n": f"${{ $steps.{count}.n }}", "v": "${ type }"}}}
        return [*body, {count: counted}, {again: decide}, after]

    def listening(self, place: Place) -> Body:
        name, hear, tell = self.name("k"), self.name("b"), self.name("b")
        kind = f"{self.made.name}.{name}"
        correlate = {"run": {"from": ".data.key", "expect": "${ $workflow.input.key }"}}
        strategy = self.random.choice(["one", "any", "until", "all", "foreach"])
        filters = [{"with": {"type": f"{kind}.{n}"}, "correlate": correlate} for n in range(2)]
        count = 1 if strategy in ("one", "any") else 2
        to: Task = {"one": filters[0]}
        if strategy == "any":
            to = {"any": filters}
        elif strategy == "all":
            to = {"all": filters}
        elif strategy in ("until", "foreach"):
            to = {"any": filters, "until": "length >= 2" if self.chance(0.5) else "[limit(9; .[])] | length >= 2"}
        listen: Task = {"listen": {"to": to}}
        if strategy == "foreach":
            steps = [{self.name("n"): {"call": "noop", "with": {"output": {"i": "${ $i }", "e": "${ $e.n }"}}}}]
            listen["foreach"] = {"item": "e", "at": "i", "do": steps}
        tells: Body = [{self.name("w"): {"wait": {"milliseconds": self.random.randint(0, 20)}}}]
        for n in range(count):
            data = {"key": "${ $workflow.input.key }", "n": n}
            tells += [{self.name("e"): {"emit": {"event": {"with": {"type": f"{kind}.{n}", "data": data}}}}}]
        tells += [{self.name("s"): {"set": {"told": count}}}]
        # Sorted: what arrives at the very moment when the listening begins may come in either order.
        shown = "${ ([.[0][] | tojson | .[0:20]] | sort) + [.[1]] }"
        listen["output"] = {"as": "${ map({n: .n?, e: .e?}) }"}
        branches = [{hear: listen}, {tell: {"do": tells}}]
        return [{name: {"fork": {"branches": branches}, "output": {"as": shown}}}]

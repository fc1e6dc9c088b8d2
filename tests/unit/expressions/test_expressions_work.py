"""What an expression may build: hostile ones end at once with a clear fault, ordinary ones are not counted at all."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flint_core.expressions import ExpressionFault, compile_expression, compile_template
from flint_core.expressions.work import BUDGET, EASY

TEXT = "x" * 200_000
RECORD = {"items": [{"id": number, "tags": ["a", "b"]} for number in range(5_000)]}
VARIABLES = frozenset({"context"})
BEYOND = f"the expression builds more than {BUDGET} characters and values"


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """An expression that gets away takes this process's room, not the machine's."""
    former = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, former)


def chain(step: str, times: int) -> str:
    return " | ".join([step] * times)


@pytest.mark.parametrize("data", [TEXT, RECORD, [1], "x", None, 7])
@pytest.mark.parametrize(
    "source",
    [
        chain("[., ., ., ., ., ., ., .]", 20) + " | tojson",
        chain("[., ., ., ., ., ., ., .]", 20),
        chain("{a: ., b: ., c: ., d: .}", 30) + " | tostring | length",
        chain('"\\(.)\\(.)\\(.)\\(.)"', 30),
        chain("[., ., ., .]", 30) + " | . == .",
        chain("[., .] + [., .]", 40),
        "[.] | " + chain(". + .", 40),
        "tojson | " + chain(". + .", 40),
        chain("tojson", 40) + " | " + chain(". + .", 20),
        "tojson | " + chain(". * 3", 40),
        "(" + chain("[., ., ., ., ., ., ., .]", 20) + ")?",
        "try_ | tojson".replace("try_", "(" + chain("[., .]", 60) + ' | tojson)? // "none"'),
    ],
)
def test_what_grows_without_bound_is_a_fault(source: str, data: Any) -> None:
    expression = compile_expression(source, variables=VARIABLES)
    assert expression.fast
    for _ in range(2):  # the same each time: the budget is that of one evaluation
        with pytest.raises(ExpressionFault) as fault:
            expression.evaluate(data, {}, 0)
        assert fault.value.detail in (BEYOND, "the repeated string is too long")


@pytest.mark.parametrize(
    "source",
    [
        ".items[0].id == 3 and .items[1].id != 4 and (.items | length) > 2 and $context.a.b // false",
        "{id: .items[0].id, all: .items, count: (.items | length), context: $context}",
        '"order \\(.items[0].id) of \\(.items | length): \\(.items)"',
        "if .a then .b else .c end",
        ".items[1:] + .items[:1] | tojson",
    ],
)
def test_ordinary_expressions_are_not_metered(source: str) -> None:
    assert compile_expression(source, variables=VARIABLES).effort <= EASY


def test_what_is_metered_has_the_value_it_always_had() -> None:
    source = "{" + ", ".join(f"m{place}: (.items | length), n{place}: .items[{place}]" for place in range(40)) + "}"
    expression = compile_expression(source, variables=VARIABLES)
    assert expression.effort > EASY
    value = expression.evaluate(RECORD, {}, 0)
    assert value["m7"] == 5_000
    assert value["n39"] == RECORD["items"][39]


@pytest.mark.parametrize(
    "template",
    ["${ . }-" * 900, [["${ . }"] * 300] * 20, {f"a{n}": "${ tojson }" for n in range(500)}],
)
def test_a_template_has_one_budget_for_all_its_expressions(template: Any) -> None:
    compiled = compile_template(template, variables=VARIABLES)
    assert compiled.evaluate("x", {}, 0) is not None
    with pytest.raises(ExpressionFault, match="builds more than"):
        compiled.evaluate(TEXT, {}, 0)


def test_values_that_jq_gave_count_in_a_template() -> None:
    template = compile_template(["${ [.[] | .] }"] * 40, variables=VARIABLES)
    assert template.evaluate([1], {}, 0, [[1]] * 40) == [[1]] * 40
    with pytest.raises(ExpressionFault, match="builds more than"):
        template.evaluate([1], {}, 0, [TEXT] * 40)


def test_arrays_that_only_a_comparison_of_each_with_each_could_subtract() -> None:
    items = [[0] * 300 + [2**60, number] for number in range(440)]
    others = [[*item, 1] for item in items]
    for source in (".a - .b", ".a[.b]"):
        with pytest.raises(ExpressionFault, match="too large"):
            compile_expression(source, variables=VARIABLES).evaluate({"a": items, "b": others}, {}, 0)


@pytest.mark.parametrize("source", [".price * .qty + .shipping", "{total: .price * .qty}", "100 * (.a - .b)"])
def test_sums_of_numbers_are_not_metered(source: str) -> None:
    assert compile_expression(source, variables=VARIABLES).effort <= EASY

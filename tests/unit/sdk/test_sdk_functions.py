"""The decorator: schemas from signatures, arguments bound, results encoded, faults that repeat no value."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from flint_core.problems import ProblemType
from flint_sdk import Function, FunctionContext, FunctionError, FunctionWorker, function
from flint_sdk._functions import TaskFacts


class Order(BaseModel):
    id: str
    lines: list[int] = []


def context() -> FunctionContext:
    facts = TaskFacts("t/f", "1.0.0", "key", "namespaces/n/runs/r", "/do/0/a", 1, 1, "00", datetime.now(UTC))
    return FunctionContext(facts, lambda percent, message: None)


def made(call: Any) -> Function[..., Any]:
    return function(call, name="tests/f", version="1.0.0")


def test_the_schemas_say_what_the_signature_says() -> None:
    def ship(order: Order, on: date, *, weight: Annotated[float, Field(gt=0)] = 1.0, context: FunctionContext) -> Order:
        """Ships an order.

        And more."""
        return order

    shipped = made(ship)
    schema = json.loads(shipped.input_schema)
    assert schema["required"] == ["order", "on"]
    assert set(schema["properties"]) == {"order", "on", "weight"}
    assert schema["properties"]["weight"]["exclusiveMinimum"] == 0
    assert schema["additionalProperties"] is False
    assert json.loads(shipped.output_schema)["title"] == "Order"
    assert shipped.description == "Ships an order."
    assert not shipped.is_async


def test_arguments_are_bound_and_typed() -> None:
    def ship(order: Order, on: date, context: FunctionContext, note: str | None = None) -> list[Any]:
        return [order, on, context.idempotency_key, note]

    given = context()
    bound = made(ship).bind(b'{"order": {"id": "1", "lines": [2]}, "on": "2026-01-02"}', given)
    assert bound == {"order": Order(id="1", lines=[2]), "on": date(2026, 1, 2), "note": None, "context": given}
    assert made(ship)(**bound)[2] == "key"


def test_names_that_pydantic_keeps_to_itself_are_fine() -> None:
    def odd(schema: str, copy: int, model_config: bool, **others: int) -> dict[str, Any]:
        return {"schema": schema, **others}

    bound = made(odd).bind(b'{"schema": "s", "copy": 1, "model_config": true, "more": 4}', context())
    assert bound == {"schema": "s", "copy": 1, "model_config": True, "more": 4}


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (b'{"order": {"id": 5}, "on": "2026-01-02"}', "/order/id"),
        (b'{"order": {"id": "s3cr3t"}}', "/on"),
        (b'{"order": {"id": "s3cr3t"}, "on": "2026-01-02", "what": 1}', "/what"),
        (b'"s3cr3t"', "/"),
        (b"{", "/"),
    ],
)
def test_what_does_not_fit_is_a_validation_problem_without_the_value(arguments: bytes, place: str) -> None:
    def ship(order: Order, on: date) -> None: ...

    with pytest.raises(FunctionError) as caught:
        made(ship).bind(arguments, context())
    assert (caught.value.type, caught.value.status) == (ProblemType.VALIDATION, 400)
    assert place in caught.value.detail
    assert "s3cr3t" not in str(caught.value)


def test_results_are_checked_and_encoded() -> None:
    def count() -> dict[str, date]: ...  # type: ignore[empty-body]
    def anything(): ...  # type: ignore[no-untyped-def]

    assert made(count).encode({"a": date(2026, 1, 2)}) == b'{"a":"2026-01-02"}'
    assert made(anything).encode({"a": [1, None]}) == b'{"a":[1,null]}'
    assert made(anything).output_schema == b""
    for wrong in ("text", {"a": "no date"}):
        with pytest.raises(FunctionError) as caught:
            made(count).encode(wrong)
        assert caught.value.title == "Invalid result"


@pytest.mark.parametrize("name", ["", "resize", "My/resize", "a/", "/a", "a//b", "a b/c", "a/" + "x" * 127])
def test_names_are_checked_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        function(name=name, version="1.0.0")(lambda: None)


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0 "])
def test_versions_are_checked_at_once(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        function(name="a/b", version=version)(lambda: None)


def test_signatures_that_cannot_be_called_by_name_are_refused() -> None:
    def positional(a: int, /) -> None: ...
    def many(*a: int) -> None: ...
    def strange(a: threading_lock) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for wrong in (positional, many, strange):
        with pytest.raises(TypeError):
            made(wrong)


def test_errors_carry_a_status_by_whether_a_retry_may_help() -> None:
    assert FunctionError("busy", retryable=True).status == 503
    assert FunctionError("wrong").status == 422
    assert FunctionError("teapot", status=418, retryable=True).status == 418


def test_a_function_worker_says_at_once_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FunctionWorker([], address="127.0.0.1:1", key="k")
    with pytest.raises(ValueError, match="concurrency"):
        FunctionWorker([made(lambda: None)], address="127.0.0.1:1", key="k", concurrency=0)

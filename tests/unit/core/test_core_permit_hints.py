"""Concurrency keys and rates: what a definition says, where it is wrong, and what becomes of it for one run."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.definition import Severity, compile_definition
from flint_core.permit_hints import KeyTooLong, permits_of
from flint_core.queueing import ConcurrencyKey, QueueHints, RateKey, needs_permits


def text_of(template: Any) -> str:
    return str(template).upper()


def test_keys_tell_where_they_come_from() -> None:
    queue = {
        "concurrency": [{"limit": 3}, {"key": "a", "limit": 2, "overflow": "refuse"}, {"named": "shops"}],
        "rates": [{"key": "a", "count": 10, "period_ms": 1000}, {"key": "a", "named": "shops"}],
    }
    places, rates = permits_of(queue, "orders", text_of)
    assert places == (
        ConcurrencyKey("workflow/orders", 3),
        ConcurrencyKey("key/A", 2, "refuse"),
        ConcurrencyKey("limit/shops", 0, named="shops"),
    )
    assert rates == (RateKey("key/A", 10, 1000), RateKey("limit/shops/A", 0, 0, named="shops"))


def test_two_members_with_one_key_are_one_permit() -> None:
    queue = {"concurrency": [{"key": "a", "limit": 3}, {"key": "A", "limit": 7}]}
    assert permits_of(queue, "orders", text_of) == ((ConcurrencyKey("key/A", 3),), ())


@pytest.mark.parametrize("text", ["x" * 501, "a\0b"])
def test_a_key_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(KeyTooLong):
        permits_of({"concurrency": [{"key": text, "limit": 1}]}, "orders", str)


def test_hints_with_permits_survive_the_record() -> None:
    hints = QueueHints(concurrency=(ConcurrencyKey("key/a", 3, "replace"),), rates=(RateKey("k", 1, 50, 2, "n"),))
    assert QueueHints.from_json(hints.to_json()) == hints
    assert needs_permits(hints)
    assert not needs_permits(QueueHints())
    assert not needs_permits(None)


HEAD = "document: {{dsl: 1.0.3, namespace: default, name: w, version: 1.0.0, metadata: {{flint: {{{hints}}}}}}}\n"


def compiled(hints: str) -> Any:
    return compile_definition(HEAD.format(hints=hints) + "do: [{nothing: {set: {done: true}}}]\n")


def test_what_a_definition_says_is_compiled() -> None:
    program = compiled(
        "concurrency: [{key: '${ .shop }', limit: 3}, {limit: shops, overflow: refuse}],"
        " rate: {count: 10, per: PT1M, burst: 2}"
    ).program
    assert program is not None
    assert program.queue == {
        "concurrency": [{"key": "${ .shop }", "limit": 3}, {"named": "shops", "overflow": "refuse"}],
        "rates": [{"count": 10, "burst": 2, "period_ms": 60_000}],
    }


@pytest.mark.parametrize(
    ("hints", "place"),
    [
        ("concurrency: {limit: 0}", "concurrency/limit"),
        ("concurrency: {key: k}", "concurrency"),
        ("concurrency: {limit: true}", "concurrency/limit"),
        ("concurrency: {limit: 3, overflow: drop}", "concurrency/overflow"),
        ("concurrency: {limit: Not A Name}", "concurrency/limit"),
        ("concurrency: {limit: 3, key: '${ .a | map(.b) }'}", "concurrency/key"),
        ("concurrency: [{limit: 1}, {limit: 1}, {limit: 1}, {limit: 1}, {limit: 1}]", "concurrency"),
        ("rate: {count: 3}", "rate"),
        ("rate: {count: 3, per: P1Y}", "rate/per"),
        ("rate: {count: 3, per: PT1S, burst: 0}", "rate/burst"),
        ("rate: {limit: named, count: 3}", "rate/count"),
        ("rate: {limit: 3}", "rate/limit"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(hints: str, place: str) -> None:
    errors = [f for f in compiled(hints).findings if f.severity is Severity.ERROR]
    assert [f.pointer for f in errors] == [f"/document/metadata/flint/{place}"]


def test_a_task_has_no_concurrency_of_its_own() -> None:
    body = "do: [{w: {set: {a: 1}, metadata: {flint: {concurrency: {limit: 1}}}}}]\n"
    found = compile_definition("document: {dsl: 1.0.3, namespace: default, name: w, version: 1.0.0}\n" + body)
    assert ["belongs into the document's metadata" in f.message for f in found.findings] == [True]

"""Whatever bytes come as a definition: findings come back, nothing is raised, within bounds of time and memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from functools import lru_cache
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flint_core.definition import Compiled, DefinitionLimits, Severity, compile_definition
from support.random_workflows import generate_batch

HEAD = "document: {dsl: 1.0.3, namespace: default, name: fuzz, version: 1.0.0}\n"
MIB = 2**20
CALM = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def compiled(source: bytes | str) -> Compiled:
    """Compiles; checks what holds for every text."""
    found = compile_definition(source)
    errors = [f for f in found.findings if f.severity is Severity.ERROR]
    assert (found.program is None) == bool(errors or found.needs)
    for finding in found.findings:
        assert finding.message
        assert finding.line >= 1
        assert finding.column >= 1
        orjson.dumps([finding.message, finding.pointer])
    return found


@lru_cache
def originals() -> list[dict[str, Any]]:
    return [workflow.document for workflow in generate_batch(11, 60)]


@CALM
@given(st.binary(max_size=400) | st.text(max_size=300))
def test_any_bytes(source: bytes | str) -> None:
    compiled(source)


@CALM
@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@`# \n\tab1~\\.$<=\x00\x85\ud83d\ufeff", max_size=200))
def test_letters_that_mean_something(source: str) -> None:
    compiled(source)
    compiled(HEAD + "do: " + source)


@CALM
@given(st.integers(0, 59), st.integers(0, 2**32), st.integers(1, 12))
def test_valid_documents_with_bytes_changed(which: int, seed: int, changes: int) -> None:
    text = bytearray(orjson.dumps(originals()[which], option=orjson.OPT_INDENT_2))
    dice = random.Random(seed)
    for _ in range(changes):
        at = dice.randrange(len(text))
        kind = dice.randrange(4)
        if kind == 0:
            text[at] = dice.choice(b'{}[]:,"\\\n $.|#-0aZ\x00\xff')
        elif kind == 1:
            del text[at : at + dice.randrange(1, 30)]
        elif kind == 2:
            text[at:at] = text[at : at + dice.randrange(1, 60)]
        else:
            text[at:at] = dice.choice([b"${ ", b" }", b"&a ", b"*a", b"!!int ", b"1e999", b"\\ud800", b"null", b"[]"])
    compiled(bytes(text))


STRANGE: list[Any] = [
    *(None, True, 0, -1, 2**63, 1e300, "", "x", "${ . }", "${", "${ } }", [], {}, [[]], {"": None}, "\x00", "PT1S"),
    *("P", "${ $secrets.x }", "${ input }", "${ $__loc__ }", "${ import \"a\" as $a; . }", {"use": "x"}),
    *({"do": []}, ["a"] * 50, "../..", "http://[::", "{a", "R/P1D", "\U0001f600" * 40, {"$payload": "x"}),
    *({"ref": {"ref": {}}}, "(" * 500, "." * 500),
]  # fmt: skip


@CALM
@given(st.integers(0, 59), st.integers(0, 2**32), st.integers(1, 4))
def test_valid_documents_with_values_changed(which: int, seed: int, changes: int) -> None:
    document = orjson.loads(orjson.dumps(originals()[which]))
    dice = random.Random(seed)
    for _ in range(changes):
        node: Any = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = dice.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and dice.random() < 0.8:
                node = node[key]
                continue
            action = dice.randrange(4)
            if action == 0:
                del node[key]
            elif action == 1 and isinstance(node, dict):
                node[dice.choice(["if", "then", "with", "try", "use", "zz", "do", "for", "call"])] = node.pop(key)
            else:
                node[key] = orjson.loads(orjson.dumps(dice.choice(STRANGE)))
            break
    compiled(orjson.dumps(document))


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
FUNCTIONS = "\n".join(f"    f{n}: {{do: [{{a: {{call: f{(n + 1) % 40}}}}}]}}" for n in range(40))
DOUBLING = (
    "\n".join(f"    f{n}: {{do: [{{a: {{call: f{n + 1}}}}}, {{b: {{call: f{n + 1}}}}}]}}" for n in range(25))
    + "\n    f25: {set: {n: 1}}"
)
STEPS = "".join(f"  - s{n}: {{set: {{n: '${{ .n + {n} }}'}}, then: s{n + 1}}}\n" for n in range(9_000))
BOMBS = {
    "ten mebibytes": HEAD + "x" * (10 * MIB),
    "flow depth": "[" * (MIB - 1),
    "block depth": "- " * (MIB // 2 - 1),
    "key depth": "? " * (MIB // 2 - 1),
    "mapping depth": "{a: " * (MIB // 4 - 1),
    "aliases": ALIASES,
    "duplicate keys": HEAD + HEAD,
    "a huge key": "{" + '"' + "k" * (MIB - 100) + '": 1}',
    "a huge block key": "? " + "k" * (MIB - 100) + "\n: 1",
    "nul": HEAD + "do: \x00",
    "many values": "[" + "1," * (MIB // 2 - 10) + "]",
    "half of a pair": '{"document": "\\ud800"}',
    "a huge integer": "a: " + "9" * (MIB - 100),
    "a huge float": "a: 1e" + "9" * (MIB - 100),
    "a cycle of functions": HEAD + f"use:\n  functions:\n{FUNCTIONS}\ndo: [{{s: {{call: f0}}}}]",
    "functions that double": HEAD + f"use:\n  functions:\n{DOUBLING}\ndo: [{{s: {{call: f0}}}}]",
    "a deep expression": HEAD + "do: [{s: {set: {n: '${ " + "(" * 100_000 + " }'}}}]",
    "a long expression": HEAD + "do: [{s: {set: {n: '${ " + "1 + " * 200_000 + "1 }'}}}]",
    "an expression of pipes": HEAD + "do: [{s: {set: {n: '${ . " + "| . " * 200_000 + " }'}}}]",
    "an expression of paths": HEAD + "do: [{s: {set: {n: '${ " + ".a" * 200_000 + " }'}}}]",
    "many interpolations": HEAD + "do: [{s: {set: {n: '" + "${ .a }-" * 100_000 + "'}}}]",
    "a schema that is deep": HEAD + "input: {schema: {document: " + "{not: " * 60 + "true" + "}" * 60 + "}}\ndo: []",
    "a schema with a regex": HEAD + "input: {schema: {document: {pattern: '(a+)+$'}}}\ndo: [{s: {set: {n: 1}}}]",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    source = BOMBS[name].encode("utf-8", "surrogatepass")
    began = time.process_time()
    found = compiled(source)
    assert time.process_time() - began < 5, "it took too long"
    if not name.startswith("a schema"):
        assert found.program is None, "it was accepted"


@pytest.mark.parametrize("name", ["aliases", "flow depth", "many values", "a huge key"])
def test_bombs_take_little_memory(name: str) -> None:
    source = BOMBS[name].encode()
    tracemalloc.start()
    try:
        compiled(source)
        assert tracemalloc.get_traced_memory()[1] < 200 * MIB
    finally:
        tracemalloc.stop()


def test_a_mebibyte_of_tasks_compiles_in_time() -> None:
    source = HEAD + "do:\n" + STEPS + "  - s9000: {set: {n: 1}}\n"
    padded = source + "#" * (MIB - len(source) - 1)
    began = time.process_time()
    assert compiled(padded).program is not None
    assert time.process_time() - began < 15


def test_the_limit_of_bytes_is_the_operators() -> None:
    source = HEAD + "do: [{s: {set: {n: 1}}}]"
    assert compile_definition(source, DefinitionLimits(definition_bytes=len(source))).program is not None
    (finding,) = compile_definition(source, DefinitionLimits(definition_bytes=len(source) - 1)).findings
    assert "the limit is" in finding.message

"""Random expressions of the fast path's kind, and random data for them."""

from __future__ import annotations

import functools
from typing import Any

import jq
from hypothesis import strategies as st

from flint_core.expressions import compile_expression
from flint_jq.wrapping import wrap

NAMES = ("a", "b", "x")
NOW_MS = 1_700_000_000_250

keys = st.sampled_from(["a", "b", "c", "a b", "if", "ü"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.5, 1.0, -1.0, 1e17, 1e-7, 2**53, 2**53 + 1, 1e300, 1152921504606846976, 0.1, 1e15, 123456.789])
    | st.sampled_from(["", "a", "b", "ab", "a,b", "äö", "𐀀", "\x7f\x00", '"', "1e5"])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=10
)


@functools.lru_cache(maxsize=20_000)
def program(source: str) -> Any:
    return jq.compile(wrap(source, NAMES))


numbers = st.sampled_from(
    ["0", "1", "2", "0.5", "1.0", "3.25", "10", "9007199254740993", "-1", "-2.5", "100000000000000"]
)
strings = st.sampled_from(['""', '"a"', '"b"', '"a b"', '"ä\\n"', '","', '"\\u00e9\\ud83d\\ude00"'])
words = st.sampled_from(
    ["true", "false", "null", ".", "$a", "$b", "$x", "now", "length", "tostring", "type", "keys", "not"]
)
fields = st.sampled_from(
    [".a", ".b", ".a.b", '."a b"', ".a[0]", ".[0]", ".[-1]", '.["a"]', ".if", "$b.a", "$b.a[1]", '.a."b"']
)
leaves = fields | words | numbers | strings


def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def joined(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda values: form.format(*values))

    operator = st.sampled_from(["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "and", "or", "//", "|"])
    key = st.sampled_from(["a", '"k"', '"a b"', "if", "(.a | tostring)", '"n\\(.a)"'])
    return st.one_of(
        joined("({} {} {})", inner, operator, inner),
        joined("({} {} {})", inner, operator, inner),
        joined("{} {} {}", fields, operator, fields),
        joined("({})?", inner),
        joined("{}.a?", fields),
        joined("({})[{}]", inner, inner),
        joined("({})[{}:{}]", inner, inner, inner),
        joined("({})[1:]", inner),
        joined("({})[:-1]", inner),
        joined("({}).a", inner),
        joined("[{}, {}]", inner, inner),
        joined("[{}]", inner),
        joined("{{a, {}: {}, $x, b: {}}}", key, inner, inner),
        joined("{{({}): {}}}", inner, inner),
        joined("if {} then {} else {} end", inner, inner, inner),
        joined("if {} then {} elif {} then {} end", inner, inner, inner, inner),
        joined('"x\\({})y\\({})"', inner, inner),
        joined("({} | {})", inner, st.sampled_from(["length", "tostring", "tojson", "type", "keys", "not"])),
        joined("{} | {}", inner, inner),
    )


expressions = st.recursive(leaves, grow, max_leaves=6)


def is_fast(source: str) -> bool:
    return compile_expression(source, variables=frozenset(NAMES)).fast

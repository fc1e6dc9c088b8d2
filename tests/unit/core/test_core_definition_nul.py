"""The character NUL: PostgreSQL keeps no text with it, so no text of a definition has it."""

from __future__ import annotations

import pytest

from flint_core.definition.findings import DefinitionLimits
from flint_core.definition.reader import ReadError, read


@pytest.mark.parametrize("text", ['a: "x\\0"', '"a\\0": x', 'a: ["\\x00"]', '{"a": "\\u0000"}'])
def test_a_text_with_nul_is_refused_where_it_stands(text: str) -> None:
    with pytest.raises(ReadError, match="NUL") as caught:
        read(text, DefinitionLimits())
    assert caught.value.line == 1


def test_an_expression_may_speak_of_it() -> None:
    assert read("a: '${ \"\\u0000\" }'", DefinitionLimits()).plain() == {"a": '${ "\\u0000" }'}

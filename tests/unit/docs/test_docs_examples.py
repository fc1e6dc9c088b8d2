"""What the pages show as whole definitions compiles, and what they call generated is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flint_core.definition import Severity, compile_definition
from support import doc_examples

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "docs/definition-language.md")
_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Blocks of YAML that are whole documents, each with its page and the line it begins at."""
    return [
        (f"{page}:{text.count(chr(10), 0, match.start(1)) + 1}", match[1])
        for page in PAGES
        for text in [(ROOT / page).read_text(encoding="utf-8")]
        for match in _BLOCK.finditer(text)
        if match[1].startswith("document:")
    ]


EXAMPLES = examples()


@pytest.mark.parametrize(("place", "source"), EXAMPLES, ids=[place for place, _ in EXAMPLES])
def test_an_example_compiles(place: str, source: str) -> None:
    errors = [finding for finding in compile_definition(source).findings if finding.severity is Severity.ERROR]
    assert errors == []


def test_each_page_has_examples() -> None:
    assert {place.partition(":")[0] for place, _ in EXAMPLES} == set(PAGES)


def test_names_are_used_once_in_a_page() -> None:
    names = [(place.partition(":")[0], compile_definition(source).program) for place, source in EXAMPLES]
    known = [(page, program.workflow_id) for page, program in names if program is not None]
    assert len(known) == len(set(known))


def test_the_tests_and_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^\s*(?:async )?def (test_\w+)", written, re.MULTILINE))
    assert set(re.findall(r"`(test_\w+)`", text)) <= known
    modules = [f"/{path.as_posix()}" for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", text))
    assert [name for name in named if not any(module.endswith(f"/{name}") for module in modules)] == []


@pytest.mark.parametrize("tool", ["generate_config_docs.py", "generate_language_schema.py"])
def test_what_is_generated_is_what_the_code_says(tool: str) -> None:
    command = [sys.executable, str(ROOT / "deploy/tools" / tool), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_example_is_executed_or_says_where_its_like_is() -> None:
    page = doc_examples.PAGE.read_text(encoding="utf-8")
    names = set(re.findall(r"^```yaml\ndocument:[^\n]*? name: ([a-z0-9-]+)", page, re.MULTILINE))
    names |= set(re.findall(r"^```yaml\ndocument:\n(?:  [^\n]*\n)*?  name: ([a-z0-9-]+)", page, re.MULTILINE))
    assert len(names) > 30
    executed, elsewhere = doc_examples.examples().keys(), doc_examples.ELSEWHERE
    assert names == executed | elsewhere.keys()
    assert not executed & elsewhere.keys()
    for place in elsewhere.values():
        assert (doc_examples.PAGE.parents[1] / place).is_file(), place

"""Coverage-guided fuzzing of the compiler with atheris: `make fuzz`. Skips loudly where atheris does not install.

Whatever the bytes: findings come back, nothing is raised, within five seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import atheris
except ImportError:
    sys.stderr.write("SKIPPED: atheris is not installed (it has wheels for Linux on x86-64): pip install atheris\n")
    sys.exit(0)

with atheris.instrument_imports(include=["flint_core"]):
    from flint_core.definition import Severity, compile_definition

HEAD = b"document: {dsl: 1.0.3, namespace: default, name: fuzz, version: 1.0.0}\n"


def check(data: bytes) -> None:
    """One input: as a whole document, and as the part after a valid head."""
    source = data[1:] if data[:1] < b"\x80" else HEAD + data[1:]
    found = compile_definition(source)
    errors = [f for f in found.findings if f.severity is Severity.ERROR]
    if (found.program is None) != bool(errors or found.needs):
        raise AssertionError("a program and an error, or neither")


def main() -> None:
    """Writes seeds where there are none, then fuzzes; options are libFuzzer's."""
    import orjson

    from support.random_workflows import generate_batch

    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for workflow in generate_batch(1, 100):
            (corpus / workflow.name).write_bytes(b"{" + orjson.dumps(workflow.document))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

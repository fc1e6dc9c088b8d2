"""Generate the Python stubs of proto/ into libs/flint_contracts/gen, the same bytes every time.

usage: python deploy/tools/generate_stubs.py [--check]
With --check nothing is written: exit 1 when the committed stubs differ from what the contracts say.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "libs" / "flint_contracts" / "gen"


def googleapis() -> Path:
    """The folder that holds google/rpc/*.proto (from googleapis-common-protos)."""
    return Path(str(files("google.rpc") / "status.proto")).parents[2]


def generate(out: Path) -> None:
    """Write all stubs below `out`."""
    protos = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{googleapis()}", f"-I{files('grpc_tools') / '_proto'}"]
    targets = [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    tools = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{kind}={tools / f'protoc-gen-{kind}'}" for kind in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", *includes, *plugins, *targets, *protos]) != 0:
        raise SystemExit("protoc failed")
    for path in sorted(out.rglob("*_pb2_grpc.py*")):
        proto = (ROOT / "proto" / path.relative_to(out)).with_name(re.sub(r"_pb2_grpc\.pyi?$", ".proto", path.name))
        if "\nservice " not in proto.read_text():
            path.unlink()
    for path in sorted([*out.rglob("*.py"), *out.rglob("*.pyi")]):
        text = path.read_text()
        text = re.sub(r"\bfrom flint\.", "from flint_contracts.gen.flint.", text)
        text = re.sub(r"\bimport flint\.", "import flint_contracts.gen.flint.", text)
        text = re.sub(r"(?<![\w.\"'/])flint\.(\w+)\.v1\.(\w+_pb2)", r"flint_contracts.gen.flint.\1.v1.\2", text)
        path.write_text(text)
    for folder in sorted({p.parent for p in out.rglob("*.py")} | {out, out / "flint"} | set((out / "flint").glob("*"))):
        (folder / "__init__.py").write_text("")


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths that differ between two folders."""
    names = {p.relative_to(base) for base in (left, right) for p in base.rglob("*.py*") if "__pycache__" not in p.parts}
    return sorted(
        str(n)
        for n in names
        if not ((left / n).exists() and (right / n).exists() and filecmp.cmp(left / n, right / n, shallow=False))
    )


def main() -> int:
    """Generate, or check."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "gen"
        fresh.mkdir()
        generate(fresh)
        if "--check" in sys.argv:
            stale = differences(fresh, OUT)
            for name in stale:
                sys.stderr.write(f"stale stub: {name}: run `make proto`\n")
            return 1 if stale else 0
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(fresh, OUT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Check the contracts in proto/: style, and that nothing breaks clients built on the committed baseline.

usage: python deploy/tools/check_contracts.py [--update-baseline]

`buf` works offline here: the google/rpc files that the contracts import are copied from googleapis-common-protos into
a second module under .build/, and compatibility compares two built images (proto/baseline.binpb is the committed one).
--update-baseline replaces the baseline: only for a release, or for an agreed break.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from generate_stubs import ROOT, googleapis

BASELINE = ROOT / "proto" / "baseline.binpb"
BUILD = ROOT / ".build"


def buf(*arguments: str) -> None:
    """Run buf; end the program with its output when it finds something."""
    program = Path(sys.executable).parent / "buf"
    done = subprocess.run([program, *arguments], cwd=ROOT, check=False)  # noqa: S603 - a fixed program, our own arguments
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> int:
    """Lint, build, compare."""
    target = BUILD / "googleapis" / "google" / "rpc"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("status.proto", "error_details.proto"):
        shutil.copyfile(googleapis() / "google" / "rpc" / name, target / name)
    buf("lint")
    image = BUILD / "contracts.binpb"
    buf("build", "-o", str(image))
    if "--update-baseline" in sys.argv:
        shutil.copyfile(image, BASELINE)
    buf("breaking", str(image), "--against", str(BASELINE), "--exclude-imports")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

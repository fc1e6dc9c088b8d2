"""Standard error of a service is for JSON lines: gRPC's core must have been silenced before it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import builtins, importlib, sys
first, real = [], builtins.__import__

def spy(name, *rest, **more):
    if name.partition(".")[0] in ("grpc", "flint_ops"):
        first.append(name.partition(".")[0])
    return real(name, *rest, **more)

builtins.__import__ = spy
importlib.import_module(sys.argv[1])
sys.exit(first[0] != "flint_ops")
"""


@pytest.mark.parametrize("service", ["gateway", "scheduler", "registry", "worker"])
def test_settings_of_the_core_come_before_the_core(service: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, f"flint_{service}.__main__"], check=True, timeout=60)

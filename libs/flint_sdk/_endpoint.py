"""Where Flint is and which key to show: arguments, then environment, then the nearest `.flint` folder upwards."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flint_sdk._errors import ConfigurationError

FOLDER: Final = ".flint"
_DEFAULT_LISTEN: Final = "127.0.0.1:7470"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Gateways (tried in this order) and the key to show them."""

    addresses: tuple[str, ...]
    key: str


def find_endpoint(
    address: str | Sequence[str] | None = None, key: str | None = None, start: Path | None = None
) -> Endpoint:
    """Resolves what the caller left out.

    Address: the argument (one, several, or comma-separated), FLINT_ADDRESS, or `gateway.listen` of the nearest
    `.flint/flint.toml` at or above `start` (default: the working folder). Key: the argument, FLINT_KEY, or the nearest
    `.flint/admin.key`; the file is only used together with the address found beside it, so that a local admin key is
    never shown to another server. Raises ConfigurationError when one of the two cannot be found or is malformed.
    """
    folder = _nearest_folder(start or Path.cwd())
    given = address if address is not None else os.environ.get("FLINT_ADDRESS") or None
    local = _local_addresses(folder) if folder is not None else ()
    if given is None and not local:
        raise ConfigurationError(
            f"No Flint to talk to: there is no {FOLDER}/flint.toml here or in a folder above. "
            "Start one with `flint up`, or name a gateway with FLINT_ADDRESS=host:port (and FLINT_KEY)."
        )
    addresses = local if given is None else _split(given)
    secret = key if key is not None else os.environ.get("FLINT_KEY") or None
    if secret is None and folder is not None and set(addresses) <= set(local):
        secret = _local_key(folder)
    if not secret:
        raise ConfigurationError(
            f"No API key for {', '.join(addresses)}: set FLINT_KEY, "
            f"or work in the folder where `flint up` wrote {FOLDER}/admin.key."
        )
    return Endpoint(addresses, secret.strip())


def _nearest_folder(start: Path) -> Path | None:
    for place in (start, *start.parents):
        if (place / FOLDER / "flint.toml").is_file():
            return place / FOLDER
    return None


def _local_addresses(folder: Path) -> tuple[str, ...]:
    path = folder / "flint.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    gateway = document.get("gateway", {})
    listen = gateway.get("listen", _DEFAULT_LISTEN) if isinstance(gateway, dict) else None
    if not isinstance(listen, str):
        raise ConfigurationError(f"{path}: gateway.listen must be a text such as {_DEFAULT_LISTEN}")
    host, _, port = listen.rpartition(":")
    if host in ("0.0.0.0", "[::]", "::", ""):  # noqa: S104 - listening on every interface means: reachable on this one
        host = "127.0.0.1"
    return _split(f"{host}:{port}")


def _local_key(folder: Path) -> str | None:
    path = folder / "admin.key"
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _split(given: str | Sequence[str]) -> tuple[str, ...]:
    parts = given.split(",") if isinstance(given, str) else list(given)
    addresses = tuple(part.strip() for part in parts if part.strip())
    if not addresses:
        raise ConfigurationError("the list of gateway addresses is empty")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"{address!r} is not an address: expected host:port, such as {_DEFAULT_LISTEN}")
    return addresses

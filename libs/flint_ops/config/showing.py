"""Settings as people may see them: every key with its value and its source, secrets masked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from flint_ops.config.loading import Loaded

__all__ = ["MASK", "Shown", "shown"]

MASK: Final = "********"
_USER: Final = re.compile(r"://[^/?#\s]*@")


@dataclass(frozen=True, slots=True)
class Shown:
    """One value. `value`: JSON; a secret that is set is MASK, one that is empty the empty text."""

    path: tuple[str, ...]
    value: Any
    source: str

    @property
    def key(self) -> str:
        """As `--set` and errors write it."""
        return ".".join(self.path)

    @property
    def text(self) -> str:
        """The value in one line."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)


def shown(loaded: Loaded) -> Iterator[Shown]:
    """Every value in the order of the sections. Named parts (connections, secrets, labels) are keys of their own."""
    yield from _walk(loaded, loaded.settings, ())


def _walk(loaded: Loaded, value: Any, path: tuple[str, ...]) -> Iterator[Shown]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(loaded, getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _walk(loaded, member, (*path, name))
    elif isinstance(value, SecretStr):
        yield Shown(path, MASK if value.get_secret_value() else "", loaded.source(path))
    else:
        yield Shown(path, _without_passwords(value), loaded.source(path))


def _without_passwords(value: Any) -> Any:
    """A value in which addresses name no user and password."""
    if isinstance(value, list):
        return [_without_passwords(item) for item in value]
    return _USER.sub(f"://{MASK}@", value) if isinstance(value, str) else value

"""Parameters as OpenAPI writes them into a path, a query, a header or a cookie (the table «Style Values»)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson

from flint_worker.executors.bodies import text_of
from flint_worker.executors.faults import invalid
from flint_worker.executors.openapi_schemas import SchemaCheck

__all__ = ["Parameter", "cookie_pairs", "header_text", "path_text", "query_text"]

_RESERVED: Final = ":/?#[]@!$&'()*+,;="
_LEVELS: Final = 10


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operation. `where`: path, query, header or cookie. `json`: its text is JSON (`content`)."""

    name: str
    where: str
    required: bool
    style: str
    explode: bool
    reserved: bool
    json: bool
    check: SchemaCheck | None


def path_text(parameter: Parameter, value: Any) -> str:
    """What stands in the path for `{name}`. Raises Fault (validation)."""
    name = _encoded(parameter.name)
    if parameter.json:
        text = _encoded(orjson.dumps(value).decode())
    elif parameter.style == "label":
        text = "." + _joined(value, "." if parameter.explode else ",", parameter.explode)
    elif parameter.style == "matrix" and isinstance(value, dict) and parameter.explode:
        text = ";" + _joined(value, ";", True)
    elif parameter.style == "matrix" and isinstance(value, list) and parameter.explode:
        text = "".join(f";{name}={_encoded(text_of(item))}" for item in value)
    elif parameter.style == "matrix":
        text = f";{name}={_joined(value, ',', False)}"
    else:
        text = _joined(value, ",", parameter.explode)
    if text in ("", ".", ".."):
        raise invalid(f"/parameters/{parameter.name}: must not be empty, '.' or '..' in a path")
    return text


def query_text(parameter: Parameter, value: Any) -> str:
    """`name=value` and so on, joined by `&`; empty when there is nothing to say. Raises Fault (validation)."""
    safe = _RESERVED.translate({ord("&"): None, ord("#"): None, ord("+"): None}) if parameter.reserved else ""
    name = _encoded(parameter.name)

    def pair(left: str, right: Any) -> str:
        return f"{left}={_encoded(text_of(right), safe)}"

    if parameter.json:
        return pair(name, orjson.dumps(value).decode())
    if parameter.style == "deepObject" and isinstance(value, dict):
        return "&".join(pair(left, right) for left, right in _deep(name, value, 0))
    if isinstance(value, dict):
        if parameter.explode:
            return "&".join(pair(_encoded(member), part) for member, part in _present(value))
        flat = [text_of(part) for member in _present(value) for part in member]
        return name + "=" + ",".join(_encoded(part, safe) for part in flat) if flat else ""
    if isinstance(value, list):
        items = [item for item in value if item is not None]
        if parameter.explode:
            return "&".join(pair(name, item) for item in items)
        between = {"spaceDelimited": "%20", "pipeDelimited": "%7C", "tabDelimited": "%09"}.get(parameter.style, ",")
        return name + "=" + between.join(_encoded(text_of(item), safe) for item in items) if items else ""
    return pair(name, value)


def header_text(parameter: Parameter, value: Any) -> str:
    """A header's value, not encoded."""
    if parameter.json:
        return orjson.dumps(value).decode()
    if isinstance(value, dict):
        if parameter.explode:
            return ",".join(f"{name}={text_of(part)}" for name, part in _present(value))
        return ",".join(text_of(part) for member in _present(value) for part in member)
    if isinstance(value, list):
        return ",".join(text_of(item) for item in value if item is not None)
    return text_of(value)


def cookie_pairs(parameter: Parameter, value: Any) -> list[str]:
    """`name=value`, once or several times."""
    name = parameter.name
    if isinstance(value, list) and parameter.explode and not parameter.json:
        return [f"{name}={_encoded(text_of(item))}" for item in value if item is not None]
    if isinstance(value, dict) and parameter.explode and not parameter.json:
        return [f"{_encoded(member)}={_encoded(text_of(part))}" for member, part in _present(value)]
    return [f"{name}={_encoded(header_text(parameter, value), ',')}"]


def _joined(value: Any, between: str, explode: bool) -> str:
    if isinstance(value, dict):
        if explode:
            return between.join(f"{_encoded(name)}={_encoded(text_of(part))}" for name, part in _present(value))
        return between.join(_encoded(text_of(part)) for member in _present(value) for part in member)
    if isinstance(value, list):
        return between.join(_encoded(text_of(item)) for item in value if item is not None)
    return _encoded(text_of(value))


def _present(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return [(name, part) for name, part in value.items() if part is not None]


def _deep(prefix: str, value: Any, level: int) -> list[tuple[str, Any]]:
    if level > _LEVELS:
        raise invalid(f"/parameters: an object with more than {_LEVELS} levels cannot be sent in a query")
    if isinstance(value, dict):
        return [
            pair for name, part in _present(value) for pair in _deep(f"{prefix}%5B{_encoded(name)}%5D", part, level + 1)
        ]
    if isinstance(value, list):
        return [pair for item in value if item is not None for pair in _deep(prefix, item, level + 1)]
    return [(prefix, value)]


def _encoded(text: str, safe: str = "") -> str:
    return quote(text, safe=safe + "-._~")

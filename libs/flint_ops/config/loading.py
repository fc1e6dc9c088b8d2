"""Loads the configuration: which value counts, where each came from, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError

from flint_ops.config.settings import Settings

__all__ = ["DEFAULT", "Arguments", "ConfigError", "ConfigProblem", "Loaded", "load", "load_with_sources", "parse_args"]

DEFAULT: Final = "default"
"""The source of a value that nobody set."""

DEFAULT_FILE = Path(".flint/flint.toml")
_PREFIX = "FLINT_"


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong: the key (`gateway.listen`; empty for a whole file), who set it, what is wrong."""

    key: str
    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message} (from {self.source})" if self.key else f"{self.source}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds every finding, at least one."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What every service takes on its command line."""

    config: Path | None
    assignments: tuple[str, ...]


def parse_args(argv: Sequence[str] | None = None, *, program: str | None = None) -> Arguments:
    """Parses `--config FILE` and `--set section.key=value` (repeatable). Ends the process with code 2 on others."""
    parser = argparse.ArgumentParser(prog=program, description="One service of Flint.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; else FLINT_CONFIG, else .flint/flint.toml"
    )
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parsed = parser.parse_args(argv)
    return Arguments(config=parsed.config, assignments=tuple(parsed.assignments))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where their values came from. `given`: what somebody set, in sections; `sources`: who, by path."""

    settings: Settings
    given: Mapping[str, Any]
    sources: Mapping[tuple[str, ...], str]
    file: Path | None
    """The file that was read, if there was one."""

    def source(self, path: tuple[str, ...]) -> str:
        """Where the value at a path came from; `DEFAULT` when nobody set it."""
        value: Any = self.given
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                return DEFAULT
            value = value[part]
        return _source_of(path, self.sources, DEFAULT)


def load(
    argv: Sequence[str] | Arguments | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    require: Iterable[str] = (),
) -> Settings:
    """Builds the settings: flags over environment over file over defaults.

    `require` names keys (`cluster.internal_token`) that must not be empty for this process. Raises `ConfigError` with
    all problems at once.
    """
    return load_with_sources(argv, environ=environ, require=require).settings


def load_with_sources(
    argv: Sequence[str] | Arguments | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    require: Iterable[str] = (),
) -> Loaded:
    """What `load` does, with the source of every value."""
    arguments = argv if isinstance(argv, Arguments) else parse_args(argv)
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[tuple[str, ...], str] = {}
    problems: list[ConfigProblem] = []
    document, file = _read_file(arguments.config, environ)
    _merge(values, sources, document, (), f"file {file}")
    for name, text in sorted(environ.items()):
        # Names without a double underscore (FLINT_CONFIG, FLINT_API_KEY) are not settings.
        if name.startswith(_PREFIX) and "__" in name[len(_PREFIX) :]:
            path = tuple(part.lower() for part in name[len(_PREFIX) :].split("__"))
            _assign(values, sources, problems, path, text, f"environment variable {name}")
    for assignment in arguments.assignments:
        key, separator, text = assignment.partition("=")
        if not separator or "." not in key:
            problems.append(ConfigProblem("", "flag --set", f"«{assignment}» is not of the form section.key=value"))
            continue
        _assign(values, sources, problems, tuple(key.strip().split(".")), text, f"flag --set {key}")
    if problems:
        raise ConfigError(problems)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem(entry, sources) for entry in error.errors(include_url=False)]) from None
    missing = [
        ConfigProblem(key, _source_of(tuple(key.split(".")), sources, DEFAULT), "must be set")
        for key in require
        if _is_empty(settings, key)
    ]
    if missing:
        raise ConfigError(missing)
    return Loaded(settings, values, sources, file if document or file.exists() else None)


def _read_file(flag: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """The file's content and its path; empty when no file was named and the default one is not there."""
    named = flag or (Path(environ["FLINT_CONFIG"]) if environ.get("FLINT_CONFIG") else None)
    path = named or DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path
    except FileNotFoundError:
        if named is None:
            return {}, path
        raise ConfigError([ConfigProblem("", f"file {path}", "does not exist")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem("", f"file {path}", f"cannot be read: {error}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([ConfigProblem("", f"file {path}", f"is not TOML: {error}")]) from None


def _merge(
    values: dict[str, Any], sources: dict[tuple[str, ...], str], new: dict[str, Any], path: tuple[str, ...], source: str
) -> None:
    for key, value in new.items():
        place = (*path, key)
        sources[place] = source
        if isinstance(value, dict):
            _merge(values.setdefault(key, {}), sources, value, place, source)
        else:
            values[key] = value


def _assign(
    values: dict[str, Any],
    sources: dict[tuple[str, ...], str],
    problems: list[ConfigProblem],
    path: tuple[str, ...],
    text: str,
    source: str,
) -> None:
    try:
        value = _parse(_annotation(path), text)
    except ValueError as error:
        problems.append(ConfigProblem(".".join(path), source, str(error)))
        return
    target = values
    for part in path[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            problems.append(ConfigProblem(".".join(path), source, f"«{part}» is a value, not a section"))
            return
        target = inner
    target[path[-1]] = value
    sources[path] = source


def _annotation(path: tuple[str, ...]) -> Any:
    """The declared type at a path; None when there is no such key (validation reports it)."""
    current: Any = Settings
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(part)
            if field is None:
                return None
            current = field.annotation
        elif typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
        else:
            return None
    return current


def _parse(annotation: Any, text: str) -> Any:
    """A variable's or flag's text as a value: lists by commas or as JSON, tables as JSON, the rest as text."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return text
    if origin is list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if origin in (list, dict) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error.msg}") from None
    return text


def _problem(entry: Any, sources: Mapping[tuple[str, ...], str]) -> ConfigProblem:
    path = tuple(str(part) for part in entry["loc"])
    message = "is not a key of Flint's configuration" if entry["type"] == "extra_forbidden" else entry["msg"]
    return ConfigProblem(".".join(path), _source_of(path, sources, DEFAULT), message)


def _source_of(path: tuple[str, ...], sources: Mapping[tuple[str, ...], str], otherwise: str) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in sources:
            return sources[path[:length]]
    # A whole section that does not exist: whoever set something in it.
    return next((source for place, source in sources.items() if place[: len(path)] == path), otherwise)


def _is_empty(settings: Settings, key: str) -> bool:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return not value

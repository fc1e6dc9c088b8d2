"""Operations of OpenAPI documents, all versions in one form: Swagger 2.0 and OpenAPI 3.0 and 3.1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from flint_core.definition.findings import suggestion
from flint_worker.executors.client import http_url
from flint_worker.executors.faults import invalid
from flint_worker.executors.openapi_documents import Document, unusable
from flint_worker.executors.openapi_schemas import SchemaCheck, check_for
from flint_worker.executors.openapi_values import Parameter

__all__ = ["Body", "Operation", "Server", "operation_of", "server_url"]

_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_REMEMBERED: Final = 200
_PARAMETERS: Final = 500
_COLLECTIONS: Final = {"ssv": "spaceDelimited", "pipes": "pipeDelimited", "tsv": "tabDelimited"}
_VARIABLE: Final = re.compile(r"\{([^{}]*)\}")
_FORM: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Body:
    """What an operation takes as its body. `name`: what it is called among the parameters; `media`: its content type.

    `fields`: those of a Swagger 2.0 form, which are parameters by themselves; None for a body that is one value.
    """

    name: str
    required: bool
    media: str
    check: SchemaCheck | None
    fields: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """Where an operation is: a URL, maybe relative and with variables, and the variables' defaults and choices."""

    url: str
    variables: Mapping[str, tuple[str, frozenset[str]]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, its references resolved."""

    method: str
    path: str
    parameters: tuple[Parameter, ...]
    body: Body | None
    server: Server
    accept: str


def operation_of(document: Document, operation_id: str) -> Operation:
    """The operation of that id; remembered with the document. Raises Fault.

    May take some hundred milliseconds for a large document: call it in a thread.
    """
    known: Operation | None = document.operations.get(operation_id)
    if known is not None:
        return known
    root = document.root
    modern = str(root.get("openapi", "")).startswith("3.1")
    if not modern and not str(root.get("openapi", "")).startswith("3.0") and str(root.get("swagger", "")) != "2.0":
        raise unusable("it is neither OpenAPI 3.0 or 3.1 nor Swagger 2.0")
    path, method, item, found = _find(document, operation_id)
    reader = _Swagger(document, modern) if "swagger" in root else _OpenApi(document, modern)
    operation = reader.operation(method, path, item, found)
    document.operations[operation_id] = operation
    while len(document.operations) > _REMEMBERED:
        document.operations.popitem(last=False)
    return operation


def server_url(document: Document, operation: Operation, given: Mapping[str, Any]) -> str:
    """The server's address without a slash at its end. `given`: `url` and `variables` of the call. Raises Fault."""
    url, variables = operation.server.url, operation.server.variables
    if "url" in given:
        url, variables = given["url"], {}
    values: Mapping[str, str] = given.get("variables", {})

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        default, choices = variables.get(name, ("", frozenset()))
        chosen = values.get(name, default)
        if not chosen:
            raise invalid(f"/server/variables: '{name[:100]}' has no value")
        if choices and chosen not in choices:
            raise invalid(f"/server/variables/{name[:100]}: not one of {', '.join(sorted(choices))[:200]}")
        return chosen

    for name in values:
        if f"{{{name}}}" not in url:
            raise invalid(f"/server/variables: the server has no variable '{name[:100]}'")
    filled = _VARIABLE.sub(value, url)
    try:
        joined = document.url.join(filled)
    except httpx.InvalidURL:
        raise unusable("its server's address is not well-formed") from None
    return str(http_url(str(joined.copy_with(query=None, fragment=None)), "/server")).rstrip("/")


def _paths(document: Document) -> Iterator[tuple[str, Mapping[str, Any]]]:
    paths = document.root.get("paths")
    if isinstance(paths, dict):
        for path, item in paths.items():
            resolved = document.resolve(item)
            if isinstance(resolved, dict) and path.startswith("/"):
                yield path, resolved


def _find(document: Document, operation_id: str) -> tuple[str, str, Mapping[str, Any], Mapping[str, Any]]:
    known: list[str] = []
    for path, item in _paths(document):
        for method in _METHODS:
            operation = item.get(method)
            if not isinstance(operation, dict) or not isinstance(operation.get("operationId"), str):
                continue
            if operation["operationId"] == operation_id:
                return path, method, item, operation
            known.append(operation["operationId"])
    hint = suggestion(operation_id, known)
    raise invalid(f"/operationId: the document has no operation '{operation_id[:100]}'{hint}")


class _Reader:
    def __init__(self, document: Document, modern: bool) -> None:
        self.document = document
        self.modern = modern

    def check(self, schema: Any) -> SchemaCheck | None:
        return check_for(self.document, schema, self.modern)

    def declared(self, item: Mapping[str, Any], operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The parameters of the path, and those of the operation, which win."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for holder in (item, operation):
            listed = holder.get("parameters", [])
            for reference in listed if isinstance(listed, list) else ():
                parameter = self.document.resolve(reference)
                if not isinstance(parameter, dict) or not isinstance(parameter.get("name"), str):
                    raise unusable("one of its parameters has no name")
                found[(parameter["name"], str(parameter.get("in")))] = parameter
        if len(found) > _PARAMETERS:
            raise unusable(f"the operation has more than {_PARAMETERS} parameters")
        return list(found.values())

    def keys(self, operation: Mapping[str, Any], schemes: Any, taken: set[str]) -> list[Parameter]:
        """API keys that the operation asks for: parameters too, for whoever has one."""
        wanted = operation.get("security", self.document.root.get("security", []))
        choices = [choice for choice in wanted if isinstance(choice, dict)] if isinstance(wanted, list) else []
        names = {name for choice in choices for name in choice}
        found = []
        for name in sorted(names):
            scheme = self.document.resolve(schemes.get(name)) if isinstance(schemes, dict) else None
            if not isinstance(scheme, dict) or scheme.get("type") != "apiKey":
                continue
            key, where = scheme.get("name"), scheme.get("in")
            if isinstance(key, str) and key not in taken and where in ("query", "header", "cookie"):
                style = "simple" if where == "header" else "form"
                found.append(Parameter(key, where, False, style, False, False, False, None))
        return found


class _OpenApi(_Reader):
    def operation(self, method: str, path: str, item: Mapping[str, Any], found: Mapping[str, Any]) -> Operation:
        parameters = [self._parameter(parameter) for parameter in self.declared(item, found)]
        taken = {parameter.name for parameter in parameters}
        schemes = self.document.resolve(self.document.root.get("components", {})).get("securitySchemes", {})
        parameters += self.keys(found, schemes, taken)
        body = self._body(self.document.resolve(found.get("requestBody")), taken)
        server = self._server(found, item, self.document.root)
        return Operation(method.upper(), path, tuple(parameters), body, server, _accept(self._answers(found)))

    def _parameter(self, given: Mapping[str, Any]) -> Parameter:
        where = given.get("in")
        if where not in ("path", "query", "header", "cookie"):
            raise unusable(f"the parameter {given['name'][:100]!r} is in no place that is known")
        content = given.get("content")
        schema, json = given.get("schema"), False
        if isinstance(content, dict) and content:
            media, described = next(iter(content.items()))
            schema = described.get("schema") if isinstance(described, dict) else None
            json = _is_json(media)
        style = str(given.get("style") or ("form" if where in ("query", "cookie") else "simple"))
        explode = bool(given.get("explode", style == "form"))
        reserved = bool(given.get("allowReserved", False))
        required = bool(given.get("required", False)) or where == "path"
        return Parameter(given["name"], where, required, style, explode, reserved, json, self.check(schema))

    def _body(self, given: Any, taken: set[str]) -> Body | None:
        if not isinstance(given, dict):
            return None
        content = given.get("content")
        if not isinstance(content, dict) or not content:
            return None
        media = min(content, key=_preference)
        described = self.document.resolve(content[media])
        schema = described.get("schema") if isinstance(described, dict) else None
        if "body" in taken:
            raise unusable("the operation has a body and a parameter named body")
        return Body("body", bool(given.get("required", False)), media, self.check(schema))

    def _server(self, *holders: Mapping[str, Any]) -> Server:
        for holder in holders:
            servers = holder.get("servers")
            if isinstance(servers, list) and servers and isinstance(servers[0], dict):
                given = servers[0].get("variables")
                variables = {
                    name: (str(told.get("default", "")), frozenset(map(str, told.get("enum") or ())))
                    for name, told in (given.items() if isinstance(given, dict) else ())
                    if isinstance(told, dict)
                }
                return Server(str(servers[0].get("url", "/")), variables)
        return Server("/", {})

    def _answers(self, operation: Mapping[str, Any]) -> list[str]:
        responses = operation.get("responses")
        found: list[str] = []
        for status, reference in responses.items() if isinstance(responses, dict) else ():
            response = self.document.resolve(reference)
            content = response.get("content") if isinstance(response, dict) else None
            if str(status).startswith("2") and isinstance(content, dict):
                found += content
        return found


class _Swagger(_Reader):
    def operation(self, method: str, path: str, item: Mapping[str, Any], found: Mapping[str, Any]) -> Operation:
        root = self.document.root
        declared = self.declared(item, found)
        plain = [parameter for parameter in declared if parameter.get("in") not in ("body", "formData")]
        parameters = [self._parameter(parameter) for parameter in plain]
        taken = {parameter.name for parameter in parameters}
        parameters += self.keys(found, root.get("securityDefinitions", {}), taken)
        consumes = _texts(found.get("consumes", root.get("consumes")))
        produces = _texts(found.get("produces", root.get("produces")))
        body, server = self._body(declared, consumes), self._server(found)
        return Operation(method.upper(), path, tuple(parameters), body, server, _accept(produces))

    def _parameter(self, given: Mapping[str, Any]) -> Parameter:
        where = given.get("in")
        if where not in ("path", "query", "header"):
            raise unusable(f"the parameter {given['name'][:100]!r} is in no place that is known")
        collection = given.get("collectionFormat", "csv")
        style = _COLLECTIONS.get(collection, "form" if where == "query" else "simple")
        required = bool(given.get("required", False)) or where == "path"
        explode = collection == "multi"
        return Parameter(given["name"], where, required, style, explode, False, False, self.check(_schema(given)))

    def _body(self, declared: list[Mapping[str, Any]], consumes: list[str]) -> Body | None:
        for parameter in declared:
            if parameter.get("in") == "body":
                media = min(consumes, key=_preference) if consumes else "application/json"
                required = bool(parameter.get("required", False))
                return Body(parameter["name"], required, media, self.check(parameter.get("schema")))
        form = [parameter for parameter in declared if parameter.get("in") == "formData"]
        if not form:
            return None
        needed = [parameter["name"] for parameter in form if parameter.get("required") is True]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {parameter["name"]: _schema(parameter) for parameter in form},
        }
        if needed:
            schema["required"] = needed
        files = any(parameter.get("type") == "file" for parameter in form)
        media = _MULTIPART if files or (_MULTIPART in consumes and _FORM not in consumes) else _FORM
        names = frozenset(parameter["name"] for parameter in form)
        return Body("body", bool(needed), media, self.check(schema), names)

    def _server(self, operation: Mapping[str, Any]) -> Server:
        root, url = self.document.root, self.document.url
        schemes = _texts(operation.get("schemes", root.get("schemes")))
        scheme = url.scheme if not schemes or url.scheme in schemes else "https" if "https" in schemes else schemes[0]
        host = root.get("host") or url.netloc.decode()
        return Server(f"{scheme}://{host}{root.get('basePath') or ''}", {})


def _schema(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that stands among the members of a Swagger 2.0 parameter."""
    skipped = {"name", "in", "description", "required", "collectionFormat", "allowEmptyValue", "default"}
    return {name: part for name, part in parameter.items() if name not in skipped and not name.startswith("x-")}


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _is_json(media: str) -> bool:
    bare = media.partition(";")[0].strip().lower()
    return bare == "application/json" or bare.endswith("+json")


def _preference(media: str) -> tuple[int, str]:
    """Which content type is sent when several are offered: JSON, forms, text, others."""
    bare = media.partition(";")[0].strip().lower()
    order = 0 if bare == "application/json" else 1 if _is_json(bare) else 2 if bare == _FORM else 3
    if order == 3 and bare != _MULTIPART:
        order = 4 if bare.startswith("text/") else 5
    return order, media


def _accept(media: list[str]) -> str:
    named = list(dict.fromkeys(sorted(media, key=_preference)))[:10]
    return ", ".join([*named, "*/*;q=0.5"]) if named else "*/*"

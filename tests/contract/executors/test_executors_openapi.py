"""The openapi executor: documents of each version, parameters by their style, and documents that are hostile."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.openapi import OpenApiExecutor
from flint_worker.executors.outbound import Outbound
from support.web import web_server

PETS_3 = """
openapi: 3.0.3
info: { title: Pets, version: 1 }
servers:
  - url: /{stage}/api
    variables: { stage: { default: live, enum: [live, test] } }
paths:
  /pets/{id}:
    parameters:
      - { $ref: '#/components/parameters/Id' }
    get:
      operationId: getPet
      parameters:
        - { name: fields, in: query, schema: { type: array, items: { type: string } }, explode: false }
        - { name: tags, in: query, schema: { type: array, items: { type: string } } }
        - { name: filter, in: query, style: deepObject, explode: true, schema: { type: object } }
        - { name: raw, in: query, allowReserved: true, schema: { type: string } }
        - { name: X-Mode, in: header, schema: { type: array, items: { type: integer } } }
        - { name: sid, in: cookie, schema: { type: string } }
        - { name: q, in: query, content: { application/json: { schema: { type: object } } } }
        - { name: size, in: query, schema: { type: integer, minimum: 0, exclusiveMinimum: true, nullable: true } }
      security: [{ key: [] }]
      responses:
        200: { description: ok, content: { application/json: {} } }
    put:
      operationId: putPet
      requestBody:
        required: true
        content:
          application/xml: {}
          application/json: { schema: { $ref: '#/components/schemas/Pet' } }
      responses: { 204: { description: done } }
  /upload:
    post:
      operationId: upload
      requestBody:
        content:
          multipart/form-data:
            schema:
              type: object
              required: [file]
              properties: { file: { type: string, format: binary }, note: { type: string } }
      responses: { 200: { description: ok } }
components:
  securitySchemes: { key: { type: apiKey, in: header, name: X-Key } }
  parameters:
    Id: { name: id, in: path, required: true, style: matrix, schema: { type: string } }
  schemas:
    Pet:
      type: object
      required: [name, id]
      properties:
        id: { type: integer, readOnly: true }
        name: { type: string, pattern: '^[a-z]+$' }
        parent: { $ref: '#/components/schemas/Pet' }
        note: { type: string, nullable: true }
"""


def listed(name: str, collection: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "type": "array", "items": {"type": "string"}, "collectionFormat": collection}


ID_2 = {"name": "id", "in": "path", "required": True, "type": "integer"}
PETS_2: dict[str, Any] = {
    "swagger": "2.0",
    "basePath": "/v2",
    "consumes": ["application/json"],
    "paths": {
        "/pets/{id}": {
            "get": {"operationId": "getPet", "parameters": [ID_2, listed("tags", "multi"), listed("pipes", "pipes")]},
            "post": {
                "operationId": "addPet",
                "parameters": [
                    ID_2,
                    {"name": "pet", "in": "body", "required": True, "schema": {"$ref": "#/definitions/Pet"}},
                ],
            },
        },
        "/form": {
            "post": {
                "operationId": "form",
                "parameters": [
                    {"name": "a", "in": "formData", "type": "string", "required": True},
                    {"name": "b", "in": "formData", "type": "integer"},
                ],
            }
        },
    },
    "definitions": {"Pet": {"type": "object", "properties": {"name": {"type": "string"}}}},
}

PETS_31: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/pets/{id}": {
            "get": {
                "operationId": "getPet",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": ["integer", "null"]}}],
            }
        }
    },
}


class Outside:
    """Serves documents by name, and echoes everything else."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {"3": PETS_3, "2": PETS_2, "31": PETS_31}
        self.headers: dict[str, str] = {}
        self.fetches: list[str] = []
        self.status = 200

    async def document(self, request: Request) -> Response:
        self.fetches.append(request.headers.get("if-none-match", ""))
        if self.status != 200:
            return Response(status_code=self.status)
        if self.fetches[-1] and self.fetches[-1] == self.headers.get("etag"):
            return Response(status_code=304, headers=self.headers)
        found = self.documents[request.path_params["name"]]
        return PlainTextResponse(found if isinstance(found, str | bytes) else orjson.dumps(found), headers=self.headers)

    async def echo(self, request: Request) -> Response:
        return JSONResponse(
            {
                "method": request.method,
                "target": request.scope["raw_path"].decode() + ("?" + request.url.query if request.url.query else ""),
                "headers": dict(request.headers),
                "body": base64.b64encode(await request.body()).decode(),
            }
        )

    @property
    def app(self) -> Starlette:
        methods = ["GET", "PUT", "POST"]
        return Starlette(
            routes=[Route("/docs/{name}", self.document), Route("/{path:path}", self.echo, methods=methods)]
        )


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
async def url(outside: Outside) -> AsyncIterator[str]:
    async with web_server(outside.app) as address:
        yield address


@pytest.fixture
async def executor() -> AsyncIterator[OpenApiExecutor]:
    settings = Settings(
        worker=WorkerSettings(allow_private_addresses=True), limits=LimitSettings(document_bytes=200_000)
    )
    outbound = Outbound(settings)
    yield OpenApiExecutor(settings, outbound)
    await outbound.close()


def call(url: str, name: str, operation: str, parameters: dict[str, Any] | None = None, **more: Any) -> ResolvedCall:
    arguments = {"document": {"endpoint": f"{url}/docs/{name}"}, "operationId": operation, **more}
    if parameters is not None:
        arguments["parameters"] = parameters
    return ResolvedCall("openapi", arguments, "key-1", "/do/0/x", "run", "", 30)


async def failed(executor: OpenApiExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


async def test_each_parameter_by_its_style(executor: OpenApiExecutor, url: str) -> None:
    parameters = {
        "id": "a/b",
        "fields": ["x", "y z"],
        "tags": ["1", "2"],
        "filter": {"a": {"b": "c"}, "d": 1},
        "raw": "a/b?c",
        "X-Mode": [1, 2],
        "sid": "s;1",
        "q": {"k": [1]},
        "size": None,
        "X-Key": "key",
    }
    seen = await executor.execute(call(url, "3", "getPet", parameters))
    assert seen["method"] == "GET"
    path, _, query = seen["target"].partition("?")
    assert path == "/live/api/pets/;id=a%2Fb"
    assert query.split("&") == [
        "fields=x,y%20z",
        "tags=1",
        "tags=2",
        "filter%5Ba%5D%5Bb%5D=c",
        "filter%5Bd%5D=1",
        "raw=a/b?c",
        "q=%7B%22k%22%3A%5B1%5D%7D",
    ]
    headers = seen["headers"]
    assert (headers["x-mode"], headers["x-key"], headers["cookie"]) == ("1,2", "key", "sid=s%3B1")
    assert headers["accept"].startswith("application/json")
    assert headers["idempotency-key"] == "key-1"


async def test_bodies(executor: OpenApiExecutor, url: str) -> None:
    pet = {"name": "rex", "parent": {"name": "old", "note": None}}
    seen = await executor.execute(call(url, "3", "putPet", {"id": "1", "body": pet}))
    assert orjson.loads(base64.b64decode(seen["body"])) == pet
    assert seen["headers"]["content-type"] == "application/json"
    parts = {"file": {"base64": "AAEC", "filename": "a.bin"}, "note": "hi"}
    seen = await executor.execute(call(url, "3", "upload", {"body": parts}))
    assert seen["headers"]["content-type"].startswith("multipart/form-data; boundary=")
    assert b"\x00\x01\x02" in base64.b64decode(seen["body"])


async def test_swagger(executor: OpenApiExecutor, url: str) -> None:
    seen = await executor.execute(call(url, "2", "getPet", {"id": 7, "tags": ["a", "b"], "pipes": ["c", "d"]}))
    assert seen["target"] == "/v2/pets/7?tags=a&tags=b&pipes=c%7Cd"
    seen = await executor.execute(call(url, "2", "addPet", {"id": 7, "pet": {"name": "rex"}}))
    assert base64.b64decode(seen["body"]) == b'{"name":"rex"}'
    seen = await executor.execute(call(url, "2", "form", {"a": "x y", "b": 1}))
    assert base64.b64decode(seen["body"]) == b"a=x+y&b=1"
    assert seen["headers"]["content-type"] == "application/x-www-form-urlencoded"
    assert (await failed(executor, call(url, "2", "form", {"b": 1}))).problem.type == ProblemType.VALIDATION


async def test_a_document_of_3_1_and_the_forms_of_output(executor: OpenApiExecutor, url: str) -> None:
    answer = await executor.execute(call(url, "31", "getPet", {"id": 1}, output="response"))
    assert answer["statusCode"] == 200
    assert answer["request"] == {"method": "GET", "uri": f"{url}/pets/1"}
    raw = await executor.execute(call(url, "31", "getPet", {"id": 1}, output="raw"))
    assert orjson.loads(base64.b64decode(raw))["method"] == "GET"


async def test_servers(executor: OpenApiExecutor, url: str) -> None:
    test = {"variables": {"stage": "test"}}
    assert (await executor.execute(call(url, "3", "getPet", {"id": "1"}, server=test)))["target"].startswith(
        "/test/api"
    )
    other = {"url": url + "/other/"}
    assert (await executor.execute(call(url, "3", "getPet", {"id": "1"}, server=other)))[
        "target"
    ] == "/other/pets/;id=1"
    for server in ({"variables": {"stage": "no"}}, {"variables": {"x": "y"}}, {"url": "ftp://x/"}):
        error = await failed(executor, call(url, "3", "getPet", {"id": "1"}, server=server))
        assert error.problem.type == ProblemType.VALIDATION


async def test_authentication_is_for_the_operation(executor: OpenApiExecutor, url: str) -> None:
    policy = {"basic": {"username": "u", "password": "hush"}}
    seen = await executor.execute(call(url, "3", "getPet", {"id": "1"}, authentication=policy))
    assert seen["headers"]["authorization"] == "Basic ***"


@pytest.mark.parametrize(
    ("operation", "parameters", "words"),
    [
        ("getPat", {"id": "1"}, "getPet"),
        ("getPet", {}, "id"),
        ("getPet", {"id": 1}, "/parameters/id"),
        ("getPet", {"id": "1", "feilds": []}, "fields"),
        ("getPet", {"id": "1", "X-Mode": ["hush-hush"]}, "/parameters/X-Mode/0"),
        ("getPet", {"id": "1", "size": 0}, "/parameters/size"),
        ("putPet", {"id": "1"}, "body"),
        ("putPet", {"id": "1", "body": {"name": "REX"}}, "/parameters/body/name"),
        ("putPet", {"id": "1", "body": {"name": "rex", "parent": {}}}, "/parameters/body/parent"),
        ("upload", {"body": {}}, "/parameters/body"),
    ],
)
async def test_parameters_that_do_not_fit(
    executor: OpenApiExecutor, url: str, operation: str, parameters: dict[str, Any], words: str
) -> None:
    error = await failed(executor, call(url, "3", operation, parameters))
    assert (error.problem.type, error.problem.status) == (ProblemType.VALIDATION, 400)
    assert words in error.problem.detail
    assert "hush" not in error.problem.detail


async def test_documents_are_remembered(executor: OpenApiExecutor, outside: Outside, url: str) -> None:
    for _ in range(3):
        await executor.execute(call(url, "31", "getPet", {"id": 1}))
    assert outside.fetches == [""]
    outside.headers = {"etag": '"v1"', "cache-control": "no-cache"}
    for _ in range(3):
        await executor.execute(call(url, "2", "getPet", {"id": 1}))
    assert outside.fetches[1:] == ["", '"v1"', '"v1"']
    outside.status = 503
    await executor.execute(call(url, "2", "getPet", {"id": 1}))
    outside.status = 404
    executor._documents._entries.clear()
    assert (await failed(executor, call(url, "2", "getPet", {"id": 1}))).problem.status == 404


def operation_with(schema: Any, **root: Any) -> dict[str, Any]:
    parameter = {"name": "p", "in": "query", "schema": schema}
    return {"openapi": "3.0.0", "paths": {"/x": {"get": {"operationId": "x", "parameters": [parameter]}}}, **root}


ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"<html></html>",
        {"openapi": "4.0"},
        ALIAS_BOMB,
        "[" * 50_000,
        operation_with({"$ref": "https://127.0.0.1/evil"}),
        operation_with({"$ref": "#/components/schemas/Missing"}),
        operation_with({"type": "nonsense"}),
        operation_with({"type": "string", "pattern": "("}),
        operation_with({"type": "string", "pattern": "(?=a)b"}),
        {"openapi": "3.0.0", "paths": {"/x": {"$ref": "#/paths/~1x"}}},
        {"openapi": "3.0.0", "paths": {"/x": {"get": {"operationId": "x", "parameters": [{"in": "query"}]}}}},
    ],
    ids=str,
)
async def test_documents_that_cannot_be_used(
    executor: OpenApiExecutor, outside: Outside, url: str, document: Any
) -> None:
    outside.documents["bad"] = document
    error = await failed(executor, call(url, "bad", "x", {"p": "v"}))
    assert (error.problem.type, error.problem.status) == (ProblemType.CONFIGURATION, 400)


async def test_recursive_schemas_and_slow_patterns_do_no_harm(
    executor: OpenApiExecutor, outside: Outside, url: str
) -> None:
    schemas = {"A": {"type": "array", "items": {"$ref": "#/components/schemas/A"}}}
    outside.documents["loop"] = operation_with({"$ref": "#/components/schemas/A"}, components={"schemas": schemas})
    await executor.execute(call(url, "loop", "x", {"p": [[[]]]}))
    outside.documents["slow"] = operation_with({"type": "string", "pattern": "^(a+)+$"})
    error = await failed(executor, call(url, "slow", "x", {"p": "a" * 5000 + "!"}))
    assert error.problem.type == ProblemType.VALIDATION


async def test_a_document_that_is_too_large(executor: OpenApiExecutor, outside: Outside, url: str) -> None:
    outside.documents["large"] = b"[" + b" " * 200_000 + b"]"
    assert (await failed(executor, call(url, "large", "x"))).problem.type == ProblemType.PAYLOAD_TOO_LARGE

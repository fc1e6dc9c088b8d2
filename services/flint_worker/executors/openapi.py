"""`openapi`: calls an operation that a document describes, after checking the parameters against it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson

from flint_core.definition.findings import suggestion
from flint_ops.config import Settings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.answers import output_of
from flint_worker.executors.arguments import check_arguments
from flint_worker.executors.bodies import add_standard_headers, body_of, headers_of
from flint_worker.executors.client import http_url
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.http import endpoint_of
from flint_worker.executors.openapi_documents import Documents
from flint_worker.executors.openapi_operations import Body, Operation, operation_of, server_url
from flint_worker.executors.openapi_values import cookie_pairs, header_text, path_text, query_text
from flint_worker.executors.outbound import Outbound

__all__ = ["OpenApiExecutor"]

_IN_PATH: Final = re.compile(r"\{([^{}]*)\}")


class OpenApiExecutor:
    """The function `openapi`. Its connections belong to the executor `http`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._outbound = outbound
        self._documents = Documents(outbound, settings.limits.document_bytes, settings.worker.document_cache_bytes)

    async def close(self) -> None:
        """Nothing: what it used is not its own."""

    async def execute(self, call: ResolvedCall) -> Any:
        """The answer as `output` asks for it. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        loop = asyncio.get_running_loop()
        ends_at = None if call.deadline_s is None else loop.time() + call.deadline_s
        try:
            where, policy = endpoint_of(arguments["document"]["endpoint"], "/document/endpoint")
            document = await self._documents.get(where, policy, call.deadline_s)
            operation: Operation | None = document.operations.get(arguments["operationId"])
            if operation is None:
                operation = await asyncio.to_thread(operation_of, document, arguments["operationId"])
            server = server_url(document, operation, arguments.get("server", {}))
            left_s = None if ends_at is None else max(ends_at - loop.time(), 0.001)
            return await self._exchange(call, arguments, operation, server, left_s)
        except Fault as fault:
            raise fault.of(call) from None

    async def _exchange(
        self, call: ResolvedCall, arguments: Mapping[str, Any], operation: Operation, server: str, left_s: float | None
    ) -> Any:
        given = {name: value for name, value in arguments.get("parameters", {}).items() if value is not None}
        _check(operation, given)
        headers = _headers(operation, given)
        content = _content(operation.body, given, headers)
        add_standard_headers(headers, call)
        auth = self._outbound.auth(arguments.get("authentication"))
        redirect = bool(arguments.get("redirect", False))
        answer = await self._outbound.client.exchange(
            operation.method,
            _url(server, operation, given),
            headers=headers,
            content=content,
            auth=auth,
            redirect=redirect,
            deadline_s=left_s,
        )
        return output_of(answer, arguments.get("output", "content"), redirect, auth.used if auth else ())


def _check(operation: Operation, given: Mapping[str, Any]) -> None:
    """Whether the parameters are those of the operation. Raises Fault (validation)."""
    known = {parameter.name for parameter in operation.parameters}
    if operation.body is not None:
        known |= {operation.body.name} if operation.body.fields is None else operation.body.fields
    for name in given:
        if name not in known:
            hint = suggestion(name, known) or (f"; it has {', '.join(sorted(known))[:300]}" if known else "")
            raise invalid(f"/parameters: the operation has no parameter '{name[:100]}'{hint}")
    for parameter in operation.parameters:
        if parameter.name not in given:
            if parameter.required:
                raise invalid(f"/parameters: '{parameter.name}' is missing (in {parameter.where})")
            continue
        error = parameter.check.first_error(given[parameter.name]) if parameter.check is not None else None
        if error is not None:
            raise invalid(f"/parameters/{parameter.name}{error[0]}: {error[1]}")


def _url(server: str, operation: Operation, given: Mapping[str, Any]) -> httpx.URL:
    in_path = {parameter.name: parameter for parameter in operation.parameters if parameter.where == "path"}

    def filled(match: re.Match[str]) -> str:
        parameter = in_path.get(match.group(1))
        if parameter is None:
            raise invalid(f"the document does not describe the parameter '{match.group(1)[:100]}' of its path")
        return path_text(parameter, given[parameter.name])

    path = _IN_PATH.sub(filled, operation.path)
    pairs = [
        text
        for parameter in operation.parameters
        if parameter.where == "query" and parameter.name in given
        if (text := query_text(parameter, given[parameter.name]))
    ]
    return http_url(server + path + ("?" + "&".join(pairs) if pairs else ""), "/server")


def _headers(operation: Operation, given: Mapping[str, Any]) -> httpx.Headers:
    named: dict[str, Any] = {}
    cookies: list[str] = []
    for parameter in operation.parameters:
        if parameter.name not in given:
            continue
        if parameter.where == "header":
            named[parameter.name] = header_text(parameter, given[parameter.name])
        elif parameter.where == "cookie":
            cookies += cookie_pairs(parameter, given[parameter.name])
    if cookies:
        named["Cookie"] = "; ".join(cookies)
    headers = headers_of(named)
    headers.setdefault("accept", operation.accept)
    return headers


def _content(body: Body | None, given: Mapping[str, Any], headers: httpx.Headers) -> bytes | None:
    if body is None:
        return None
    value: Any
    if body.fields is not None:
        value = {name: given[name] for name in given if name in body.fields}
    elif body.name not in given:
        value = None
    else:
        value = given[body.name]
    if not value and (value is None or body.fields is not None):
        if body.required:
            raise invalid(f"/parameters: '{body.name}' is missing (the body)")
        return None
    error = body.check.first_error(value) if body.check is not None else None
    if error is not None:
        place = error[0] if body.fields is not None else f"/{body.name}{error[0]}"
        raise invalid(f"/parameters{place}: {error[1]}")
    headers["content-type"] = body.media if "*" not in body.media else "application/json"
    media = headers["content-type"].partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        return orjson.dumps(value)
    return body_of(value, headers)

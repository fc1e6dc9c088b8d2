"""`grpc`: one call of a method per step, over channels that all calls of the worker share.

Messages are written and read in protobuf's JSON form. A stream of answers is collected, up to the limits.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import httpcore
import orjson
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.authentication.policies import read_policy
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.addresses import AddressRefused
from flint_worker.executors.arguments import check_arguments, failure, has_controls
from flint_worker.executors.client import http_url, public_uri
from flint_worker.executors.faults import Fault
from flint_worker.executors.grpc_channels import Channels, Target
from flint_worker.executors.grpc_descriptions import DescriptionError, Descriptions, NoReflection, ServiceDescription
from flint_worker.executors.grpc_status import retry_after_ms, type_and_status
from flint_worker.executors.outbound import Outbound

__all__ = ["GrpcExecutor"]

_LONGEST_S: Final = 300.0
"""A call ends after this long when the step has no timeout of its own."""
_DEPTH: Final = 64
_LARGEST_PROTO_BYTES: Final = 2**20
_MOST_DOCUMENTS: Final = 64
_DOCUMENT_S: Final = 60.0
"""A document is fetched again after this long."""
_KEY: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]{1,200}")
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_NAMES_NO_VALUE: Final = re.compile(r'(Message type "[^"]*" has no field named "[^"]*"|Failed to parse \w+ field)')

Metadata = list[tuple[str, str | bytes]]


class GrpcExecutor:
    """The function `grpc`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._outbound = outbound
        self._document_bytes = min(settings.limits.document_bytes, _LARGEST_PROTO_BYTES)
        self._documents: OrderedDict[tuple[str, bytes], tuple[float, str]] = OrderedDict()
        self._value_bytes = settings.limits.value_bytes
        self._most_messages = settings.worker.stream_messages
        self._channels = Channels(settings, min(self._value_bytes, 2**31 - 1))
        self._descriptions = Descriptions()

    async def close(self) -> None:
        """Closes the channels."""
        await self._channels.close()

    async def execute(self, call: ResolvedCall) -> Any:
        """The response, or an array of responses. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        limit_s = _LONGEST_S if call.deadline_s is None else min(call.deadline_s, _LONGEST_S)
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchange(call, arguments, limit_s)
        except TimeoutError:
            raise failure(call, ProblemType.TIMEOUT, 408, "The gRPC call took too long") from None
        except Fault as fault:
            raise fault.of(call) from None
        except AddressRefused:
            detail = "the host has no public address; worker.allow_private_addresses permits others"
            raise failure(call, ProblemType.AUTHORIZATION, 403, "The address is not permitted", detail) from None
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise failure(call, ProblemType.COMMUNICATION, 503, "The gRPC call failed", str(error)[:300]) from None
        except NoReflection:
            detail = "the service offers no reflection; give its .proto document as `proto`"
            raise failure(call, ProblemType.CONFIGURATION, 400, "The service is not described", detail) from None
        except DescriptionError as error:
            raise failure(call, ProblemType.CONFIGURATION, 400, "The service is not described", str(error)) from None
        except grpc.aio.AioRpcError as error:
            raise self._refused(call, error) from None

    async def _authorization(self, policy: dict[str, Any], target: Target) -> Metadata:
        """A policy as metadata. Digest has no place in gRPC. Raises Fault."""
        if read_policy(policy).scheme == "digest":
            raise Fault(
                ProblemType.CONFIGURATION, 400, "The policy cannot be used", "gRPC has no digest authentication"
            )
        scheme = "https" if target.tls else "http"
        headers = await self._outbound.authenticator.headers(policy, "POST", f"{scheme}://{target.authority}/")
        return [(name.lower(), value) for name, value in headers.items()]

    async def _description(
        self,
        call: ResolvedCall,
        proto: dict[str, Any] | None,
        channel: grpc.aio.Channel,
        target: Target,
        service: str,
        metadata: Metadata,
    ) -> ServiceDescription:
        if proto is None:
            # The call's own metadata, authorization among them: a service may guard its reflection too.
            return await self._descriptions.reflected(channel, target, service, metadata)
        if "content" in proto:
            return await self._descriptions.compiled(proto["content"])
        return await self._descriptions.compiled(await self._document(call, proto["endpoint"]))

    async def _document(self, call: ResolvedCall, endpoint: str | dict[str, Any]) -> str:
        """A .proto document, fetched or remembered. Raises Fault."""
        uri, policy = (
            (endpoint, None) if isinstance(endpoint, str) else (endpoint["uri"], endpoint.get("authentication"))
        )
        url = http_url(uri, "/proto/endpoint")
        key = (str(url), read_policy(policy).key if policy else b"")
        now = asyncio.get_running_loop().time()
        until, text = self._documents.get(key, (0.0, ""))
        if until > now:
            return text
        answer = await self._outbound.client.exchange(
            "GET",
            url,
            auth=self._outbound.auth(policy),
            redirect=True,
            deadline_s=call.deadline_s,
            limit_bytes=self._document_bytes,
        )
        if answer.status != 200:
            detail = f"GET {public_uri(url)} answered {answer.status}"
            raise Fault(ProblemType.COMMUNICATION, answer.status, "The .proto document cannot be fetched", detail)
        text = answer.body.decode("utf-8", "replace")
        self._documents[key] = (now + _DOCUMENT_S, text)
        self._documents.move_to_end(key)
        while len(self._documents) > _MOST_DOCUMENTS:
            self._documents.popitem(last=False)
        return text

    async def _exchange(self, call: ResolvedCall, arguments: dict[str, Any], limit_s: float) -> Any:
        service = arguments["service"]
        target = _target(service)
        metadata = _metadata(call, arguments.get("metadata", {}))
        if policy := service.get("authentication"):
            metadata = [pair for pair in metadata if pair[0] != "authorization"]
            metadata += await self._authorization(policy, target)
        async with self._channels.to(target) as channel:
            description = await self._description(
                call, arguments.get("proto"), channel, target, service["name"], metadata
            )
            try:
                method = description.method(service["name"], arguments["method"])
            except DescriptionError:
                self._descriptions.forget(target, service["name"])
                raise
            requests = self._requests(call, arguments.get("arguments"), method, description.pool)
            return await self._perform(call, channel, method, description.pool, requests, metadata, limit_s)

    def _requests(
        self,
        call: ResolvedCall,
        given: dict[str, Any] | list[dict[str, Any]] | None,
        method: MethodDescriptor,
        pool: DescriptorPool,
    ) -> list[Message]:
        """The messages to send. Raises ExecutionFailed (validation)."""
        if isinstance(given, list) and not method.client_streaming:
            raise _invalid(call, f"/arguments: {method.name} takes one message, so it needs an object")
        messages_given = given if isinstance(given, list) else [given or {}]
        if given is None and method.client_streaming:
            messages_given = []
        if len(messages_given) > self._most_messages:
            raise _invalid(call, f"/arguments: more than {self._most_messages} messages (worker.stream_messages)")
        kind = message_factory.GetMessageClass(method.input_type)
        messages = []
        for position, members in enumerate(messages_given):
            try:
                messages.append(
                    json_format.ParseDict(members, kind(), descriptor_pool=pool, max_recursion_depth=_DEPTH)
                )
            except (json_format.Error, TypeError, ValueError, AttributeError, DecodeError) as error:
                # The text may quote a value; what names the field alone is told.
                said = _NAMES_NO_VALUE.search(str(error))
                place = f"/arguments/{position}" if method.client_streaming else "/arguments"
                what = said.group(1) if said else f"does not fit {method.input_type.full_name}"
                raise _invalid(call, f"{place}: {what[:300]}") from None
        return messages

    async def _perform(
        self,
        call: ResolvedCall,
        channel: Any,  # a grpc.aio.Channel; its types know no calls without serializers
        method: MethodDescriptor,
        pool: DescriptorPool,
        requests: list[Message],
        metadata: Metadata,
        limit_s: float,
    ) -> Any:
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer_kind = message_factory.GetMessageClass(method.output_type)
        size = 0

        def read(content: bytes) -> Any:
            nonlocal size
            size += len(content)
            if size > self._value_bytes:
                raise self._too_large(call, f"more than {self._value_bytes} bytes (limits.value_bytes)")
            return json_format.MessageToDict(
                answer_kind.FromString(content), descriptor_pool=pool, always_print_fields_with_no_presence=True
            )

        options: dict[str, Any] = {"metadata": tuple(metadata), "timeout": limit_s}

        # Messages pass as bytes: what cannot be decoded is then a failure of ours to tell, not gRPC's.
        contents = [request.SerializeToString() for request in requests]
        exchange: Any
        # One message goes out whole, with the end of the stream: on the wire either kind of method looks the same, and
        # what is written while the service refuses the call can come out as INTERNAL (grpc/grpc#36066).
        if len(contents) == 1:
            if not method.server_streaming:
                exchange = channel.unary_unary(path)(contents[0], **options)
                return self._decoded(call, read, await exchange)
            exchange = channel.unary_stream(path)(contents[0], **options)
            return await self._collected(call, read, exchange)
        if method.server_streaming:
            exchange = channel.stream_stream(path)(**options)
        else:
            exchange = channel.stream_unary(path)(**options)
        # Written beside the reading: a service that answers meanwhile would else wait for us as we for it.
        writing = asyncio.create_task(_write(exchange, contents))
        try:
            if method.server_streaming:
                return await self._collected(call, read, exchange)
            return self._decoded(call, read, await exchange)
        finally:
            exchange.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _collected(self, call: ResolvedCall, read: Callable[[bytes], Any], exchange: Any) -> list[Any]:
        collected: list[Any] = []
        try:
            while (answer := await exchange.read()) is not grpc.aio.EOF:
                if len(collected) >= self._most_messages:
                    raise self._too_large(call, f"more than {self._most_messages} messages (worker.stream_messages)")
                collected.append(self._decoded(call, read, answer))
        finally:
            exchange.cancel()
        return collected

    @staticmethod
    def _decoded(call: ResolvedCall, read: Callable[[bytes], Any], answer: bytes) -> Any:
        try:
            return read(answer)
        except (DecodeError, json_format.Error, TypeError, ValueError, AttributeError):
            title = "The gRPC answer does not fit its description"
            raise failure(call, ProblemType.COMMUNICATION, 502, title) from None

    @staticmethod
    def _too_large(call: ResolvedCall, detail: str) -> ExecutionFailed:
        return failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "The gRPC answer is too large", detail)

    def _refused(self, call: ResolvedCall, error: grpc.aio.AioRpcError) -> ExecutionFailed:
        code, said = error.code(), error.details() or ""
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in said:
            return self._too_large(call, said[:300])
        type_, status = type_and_status(code)
        service = call.arguments["service"]
        detail = f"{service['name']}/{call.arguments['method']} at {service['host']}: {code.name}"
        if said:
            detail += f": {said[:500]}"
        return failure(call, type_, status, f"gRPC {code.name}", detail, retry_after_ms(error))


async def _write(exchange: Any, contents: list[bytes]) -> None:
    """Sends a stream of messages. A service that has ended the call already has told why to whoever reads."""
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for content in contents:
            await exchange.write(content)
        await exchange.done_writing()


def _invalid(call: ResolvedCall, detail: str) -> ExecutionFailed:
    return failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)


def _target(service: dict[str, Any]) -> Target:
    port = service.get("port")
    tls = service.get("tls", port in (None, 443))
    return Target(service["host"].lower(), port or (443 if tls else 80), tls)


def _metadata(call: ResolvedCall, given: dict[str, Any]) -> Metadata:
    """What the definition gives, the idempotency key and the trace."""
    metadata: Metadata = []
    for name, value in given.items():
        if value is None:
            continue
        key = name.lower()
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        if _KEY.fullmatch(key) is None:
            raise _invalid(call, f"/metadata: {name[:200]!r} cannot be sent")
        if key.endswith("-bin"):
            try:
                metadata.append((key, base64.b64decode(text, validate=True)))
            except (binascii.Error, ValueError):
                raise _invalid(call, f"/metadata/{name}: a name that ends in -bin takes base64") from None
        elif has_controls(text) or not text.isascii():
            raise _invalid(call, f"/metadata/{name}: only printable ASCII can be sent")
        else:
            metadata.append((key, text))
    names = {key for key, _ in metadata}
    if call.idempotency_key and "idempotency-key" not in names:
        metadata.append(("idempotency-key", call.idempotency_key))
    if _TRACE.fullmatch(call.trace_id) and "traceparent" not in names:
        metadata.append(("traceparent", f"00-{call.trace_id}-{secrets.token_hex(8)}-01"))
    return metadata

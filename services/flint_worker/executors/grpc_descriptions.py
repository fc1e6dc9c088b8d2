"""What a gRPC service looks like: from a .proto document, or from the service itself by reflection.

A document is compiled by protoc, the reference compiler, which `grpcio-tools` brings as a Python module: in a process
of its own, with limits on time, memory and output, in an empty folder, so that a hostile document harms nobody and
reads nothing. What comes out is kept by the document's hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2

__all__ = ["DescriptionError", "Descriptions", "NoReflection", "ServiceDescription"]

_MOST_FILES: Final = 500
_MOST_BYTES: Final = 8 * 2**20
_MOST_KEPT: Final = 128
_REFLECTED_S: Final = 300.0
"""What a service said of itself is asked again after this long."""
_COMPILE_S: Final = 20.0
_COMPILER: Final = f"""
import resource, sys
for name, limit in (("AS", {2**30}), ("CPU", {int(_COMPILE_S)}), ("FSIZE", {_MOST_BYTES}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
from grpc_tools import protoc
sys.exit(protoc.main(["protoc", *sys.argv[1:]]))
"""
"""Limits itself before it reads anything, so that nothing runs between fork and exec of a process with threads."""
_REFLECTION: Final = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
_WELL_KNOWN: Final = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb
    for module in (
        any_pb2,
        api_pb2,
        descriptor_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        source_context_pb2,
        struct_pb2,
        timestamp_pb2,
        type_pb2,
        wrappers_pb2,
    )
}
"""Google's own types are never taken from outside: the JSON mapping relies on their shape."""


class DescriptionError(Exception):
    """The document cannot be used, or has no such service or method; the message is for the author."""


class NoReflection(Exception):
    """The service does not offer reflection."""


class ServiceDescription:
    """The files that describe a service."""

    def __init__(self, files: Iterable[bytes]) -> None:
        """`files`: serialized FileDescriptorProtos, each after those it imports. Raises DescriptionError."""
        self.pool = descriptor_pool.DescriptorPool()
        try:
            for content in files:
                self.pool.AddSerializedFile(content)
        except (TypeError, ValueError) as error:
            raise DescriptionError(f"the description is not consistent: {str(error)[:300]}") from None

    def method(self, service: str, name: str) -> MethodDescriptor:
        """The method. Raises DescriptionError, which names those that are there."""
        try:
            descriptor = self.pool.FindServiceByName(service)
        except KeyError:
            raise DescriptionError(f"there is no service {service}") from None
        method = descriptor.methods_by_name.get(name)
        if method is None:
            known = ", ".join(sorted(descriptor.methods_by_name))[:300]
            raise DescriptionError(f"{service} has no method {name}; it has {known or 'none'}")
        return method


class Descriptions:
    """Descriptions of services, kept for a while. Belongs to one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, tuple[float, ServiceDescription]] = OrderedDict()
        self._compiling = asyncio.Semaphore(2)

    async def compiled(self, document: str) -> ServiceDescription:
        """What a .proto document describes. Raises DescriptionError."""
        key = hashlib.sha256(document.encode("utf-8", "replace")).digest()
        found = self._find(key)
        if found is None:
            async with self._compiling:
                found = self._find(key) or self._keep(key, ServiceDescription(await _compile(document)), float("inf"))
        return found

    async def reflected(
        self, channel: grpc.aio.Channel, place: object, service: str, metadata: list[tuple[str, str | bytes]]
    ) -> ServiceDescription:
        """What the service says of itself. Raises NoReflection, DescriptionError and grpc.aio.AioRpcError."""
        key = (place, service)
        found = self._find(key)
        if found is None:
            files = await _reflect(channel, service, metadata)
            found = self._keep(key, ServiceDescription(files), asyncio.get_running_loop().time() + _REFLECTED_S)
        return found

    def forget(self, place: object, service: str) -> None:
        """The service changed: ask it again."""
        self._kept.pop((place, service), None)

    def _find(self, key: object) -> ServiceDescription | None:
        until, found = self._kept.get(key, (0.0, None))
        if found is None or until < asyncio.get_running_loop().time():
            return None
        self._kept.move_to_end(key)
        return found

    def _keep(self, key: object, description: ServiceDescription, until: float) -> ServiceDescription:
        self._kept[key] = (until, description)
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return description


async def _reflect(channel: grpc.aio.Channel, service: str, metadata: list[tuple[str, str | bytes]]) -> list[bytes]:
    for path in _REFLECTION:
        try:
            return await _ask(channel, path, service, metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
    raise NoReflection


async def _ask(
    channel: grpc.aio.Channel, path: str, service: str, metadata: list[tuple[str, str | bytes]]
) -> list[bytes]:
    """The files of a service, each after those it imports."""
    files: dict[str, tuple[bytes, list[str]]] = {
        name: (content, list(descriptor_pb2.FileDescriptorProto.FromString(content).dependency))
        for name, content in _WELL_KNOWN.items()
    }
    asked: set[str] = set()
    size = 0
    questions = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)]
    while questions:
        answer = await _answer(channel, path, questions.pop(), metadata)
        if answer.WhichOneof("message_response") != "file_descriptor_response":
            if answer.error_response.error_code == grpc.StatusCode.UNIMPLEMENTED.value[0]:
                raise NoReflection
            raise DescriptionError(f"the service's reflection knows no {service}")
        for content in answer.file_descriptor_response.file_descriptor_proto:
            size += len(content)
            parsed = descriptor_pb2.FileDescriptorProto.FromString(content)
            files.setdefault(parsed.name, (content, list(parsed.dependency)))
            if size > _MOST_BYTES or len(files) > _MOST_FILES:
                raise DescriptionError("the service's description is too large")
        missing = {name for _, imports in files.values() for name in imports} - files.keys() - asked
        for name in sorted(missing):
            if len(asked) >= _MOST_FILES:
                raise DescriptionError("the service's description is too large")
            asked.add(name)
            questions.append(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
    return _ordered(files)


async def _answer(
    channel: grpc.aio.Channel,
    path: str,
    question: reflection_pb2.ServerReflectionRequest,
    metadata: list[tuple[str, str | bytes]],
) -> reflection_pb2.ServerReflectionResponse:
    """One question on a stream of its own, sent as a whole: what is written to a stream while the other side refuses
    it comes out as INTERNAL half of the time instead of the status that says why (grpc/grpc#36066).
    """
    stream = channel.unary_stream(
        path,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(question, metadata=tuple(metadata))
    try:
        answer = await stream.read()
    finally:
        stream.cancel()
    if not isinstance(answer, reflection_pb2.ServerReflectionResponse):
        raise DescriptionError("reflection ended without an answer")
    return answer


def _ordered(files: dict[str, tuple[bytes, list[str]]]) -> list[bytes]:
    """Each file after those it imports. Raises DescriptionError for imports in a circle or that nobody has."""
    done: set[str] = set()
    order: list[bytes] = []
    waiting = dict(files)
    while waiting:
        ready = [name for name, (_, imports) in waiting.items() if done.issuperset(imports)]
        if not ready:
            raise DescriptionError(f"imports of {sorted(waiting)[0][:200]} are missing or in a circle")
        for name in ready:
            order.append(waiting.pop(name)[0])
            done.add(name)
    return order


def _import_folders() -> list[str]:
    """Where the .proto files stand that a document may import: Google's well-known types and common ones."""
    folders = []
    tools = find_spec("grpc_tools")
    if tools is not None and tools.submodule_search_locations:
        folders.append(str(Path(tools.submodule_search_locations[0]) / "_proto"))
    common = find_spec("google.rpc.status_pb2")
    if common is not None and common.origin:
        folders.append(str(Path(common.origin).parents[2]))
    return folders


async def _compile(document: str) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="flint-proto-") as folder:
        place = Path(folder)
        (place / "service.proto").write_text(document, encoding="utf-8", errors="replace")
        searched = ["-I.", *(f"-I{other}" for other in _import_folders())]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-c", _COMPILER),
            *searched,
            *("--include_imports", "--descriptor_set_out=service.pb", "service.proto"),
            cwd=folder,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_COMPILE_S):
                assert process.stderr is not None  # noqa: S101  (it was asked for)
                complaint = b""
                while len(complaint) < 65_536 and (more := await process.stderr.read(65_536)):
                    complaint += more
                if len(complaint) >= 65_536:
                    process.kill()  # it would wait for somebody to read on
                code = await process.wait()
        except TimeoutError:
            raise DescriptionError("the document took too long to compile") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise DescriptionError(_complaint(complaint.decode(errors="replace")))
        output = place / "service.pb"
        if not output.exists() or output.stat().st_size > _MOST_BYTES:
            raise DescriptionError("the document describes too much")
        described = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    files = {file.name: (file.SerializeToString(), list(file.dependency)) for file in described.file}
    files |= {
        name: (content, list(descriptor_pb2.FileDescriptorProto.FromString(content).dependency))
        for name, content in _WELL_KNOWN.items()
    }
    return _ordered(files)


def _complaint(text: str) -> str:
    """What protoc says, without paths of this machine."""
    lines = [line for line in text.splitlines() if line.startswith("service.proto")]
    said = "; ".join(re.sub(r"^service\.proto:(?=\d)", "line ", line) for line in lines[:3])
    return f"the document is not a usable .proto: {said[:500] or 'protoc failed'}"

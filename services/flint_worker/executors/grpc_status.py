"""gRPC's status codes as problems."""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from flint_core.problems import ProblemType

__all__ = ["retry_after_ms", "type_and_status"]

_LONGEST_RETRY_AFTER_MS: Final = 24 * 3_600_000
_CODE: Final = grpc.StatusCode
_HTTP: Final = {
    _CODE.CANCELLED: 499,
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.NOT_FOUND: 404,
    _CODE.ALREADY_EXISTS: 409,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.FAILED_PRECONDITION: 400,
    _CODE.ABORTED: 409,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.UNIMPLEMENTED: 501,
    _CODE.UNAVAILABLE: 503,
}
"""google.rpc's own mapping to HTTP (google/rpc/code.proto); what is missing is 500."""


def type_and_status(code: grpc.StatusCode) -> tuple[str, int]:
    """The problem's type and its HTTP-like status."""
    if code is _CODE.DEADLINE_EXCEEDED:
        return ProblemType.TIMEOUT, 408
    if code is _CODE.UNAUTHENTICATED:
        return ProblemType.AUTHENTICATION, 401
    if code is _CODE.PERMISSION_DENIED:
        return ProblemType.AUTHORIZATION, 403
    return ProblemType.COMMUNICATION, _HTTP.get(code, 500)


def retry_after_ms(error: grpc.aio.AioRpcError) -> int | None:
    """What the service's RetryInfo asks for."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    delay_ms = info.retry_delay.seconds * 1000 + info.retry_delay.nanos // 1_000_000
                    return min(max(delay_ms, 0), _LONGEST_RETRY_AFTER_MS)
        except DecodeError:
            return None
    return None

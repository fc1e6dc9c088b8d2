"""IdentityService: keys. Secrets are made here and shown once; only their hashes go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.identity.v1.identity_pb2_grpc import IdentityServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_gateway.auth import authorise, current_principal
from flint_rpc import api_keys
from flint_rpc.errors import FieldViolation, field_invalid
from flint_rpc.names import parse_key, parse_parent
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import PrincipalServiceAsyncStub

__all__ = ["IdentityServicer"]

_TIMEOUT_S = 10.0
_DISPLAY_NAME_CHARACTERS = 128

Context = grpc.aio.ServicerContext[Any, Any]


class IdentityServicer(IdentityServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[PrincipalServiceAsyncStub]) -> None:
        self._client = client

    async def CreateKey(
        self, request: identity_pb2.CreateKeyRequest, context: Context
    ) -> identity_pb2.CreateKeyResponse:
        """A new key, at most as mighty as the caller's."""
        namespace = parse_parent(request.parent, allow_all=True)
        violations = []
        if not 1 <= len(request.display_name) <= _DISPLAY_NAME_CHARACTERS:
            violations.append(FieldViolation("display_name", f"needs 1 to {_DISPLAY_NAME_CHARACTERS} characters"))
        if request.role not in identity_pb2.Role.values() or request.role == identity_pb2.ROLE_UNSPECIFIED:
            violations.append(FieldViolation("role", "is required: VIEWER, OPERATOR, EDITOR or ADMIN"))
        if request.HasField("expire_time") and request.expire_time.ToMilliseconds() <= time.time() * 1000:
            violations.append(FieldViolation("expire_time", "must be in the future"))
        if violations:
            raise field_invalid(*violations)
        authorise(current_principal(), request.role, namespace)
        key = api_keys.generate()
        inner = scheduling_pb2.CreateKeyRequest(
            namespace=namespace,
            key_id=key.key_id,
            secret_hash=key.secret_hash,
            display_name=request.display_name,
            role=request.role,
        )
        if request.HasField("expire_time"):
            inner.expire_time.CopyFrom(request.expire_time)
        response = await self._client.call(lambda stub: stub.CreateKey, inner, _TIMEOUT_S)
        return identity_pb2.CreateKeyResponse(key=response.key, secret=key.token)

    async def ListKeys(self, request: identity_pb2.ListKeysRequest, context: Context) -> identity_pb2.ListKeysResponse:
        """A page, newest first."""
        namespace = parse_parent(request.parent, allow_all=True)
        size = page_size(request.page_size, default=50, most=500)
        binding = PageBinding("keys", namespace, str(request.show_revoked))
        inner = scheduling_pb2.ListKeysRequest(
            namespace=namespace,
            limit=size + 1,
            after_key_id=binding.decode(request.page_token),
            show_revoked=request.show_revoked,
        )
        response = await self._client.call(lambda stub: stub.ListKeys, inner, _TIMEOUT_S)
        keys = response.keys[:size]
        token = binding.encode(parse_key(keys[-1].name)[1]) if len(response.keys) > size else ""
        return identity_pb2.ListKeysResponse(keys=keys, next_page_token=token)

    async def RevokeKey(
        self, request: identity_pb2.RevokeKeyRequest, context: Context
    ) -> identity_pb2.RevokeKeyResponse:
        """Gateways may honour the key until their cache entry ends (identity.cache_ttl_s)."""
        namespace, key_id = parse_key(request.name)
        inner = scheduling_pb2.RevokeKeyRequest(namespace=namespace, key_id=key_id)
        response = await self._client.call(lambda stub: stub.RevokeKey, inner, _TIMEOUT_S)
        return identity_pb2.RevokeKeyResponse(key=response.key)

    async def WhoAmI(self, request: identity_pb2.WhoAmIRequest, context: Context) -> identity_pb2.WhoAmIResponse:
        """The key that was used."""
        return identity_pb2.WhoAmIResponse(key=current_principal().key)

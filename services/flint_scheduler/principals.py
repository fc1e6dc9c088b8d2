"""PrincipalService: keys, answered from the record on any replica.

Secrets never come here: the gateway sends their SHA-256.
"""

from __future__ import annotations

from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2_grpc
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_scheduler.refusals import store_refusals
from flint_store import identity
from flint_store.timestamps import from_timestamp

__all__ = ["PrincipalServicer"]

MAX_PAGE = 501
HASH_BYTES = 32

Context = grpc.aio.ServicerContext[Any, Any]


class PrincipalServicer(scheduling_pb2_grpc.PrincipalServiceServicer):
    """Finds, creates, lists and revokes keys."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        """The key, if the id is known, the secret right, and it is neither revoked nor expired; else UNAUTHENTICATED.

        The refusal is the same for all of these: it tells nobody which ids exist.
        """
        with store_refusals():
            key = await identity.authenticate(self._engine, request.key_id, request.secret_hash)
        if key is None:
            raise Refused(
                grpc.StatusCode.UNAUTHENTICATED,
                ErrorReason.ERROR_REASON_CREDENTIALS_INVALID,
                "the key is unknown, wrong, expired or revoked",
            )
        return pb.AuthenticateResponse(key=key)

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Store a key; the same request again answers the stored one."""
        if len(request.secret_hash) != HASH_BYTES:
            raise field_invalid(("secret_hash", f"must be {HASH_BYTES} bytes"))
        if request.role not in identity_pb2.Role.values() or request.role == identity_pb2.ROLE_UNSPECIFIED:
            raise field_invalid(("role", "must be VIEWER, OPERATOR, EDITOR or ADMIN"))
        expires_at = from_timestamp(request.expire_time) if request.HasField("expire_time") else None
        with store_refusals():
            key = await identity.create_key(
                self._engine,
                identity.NewKey(
                    namespace=request.namespace,
                    key_id=request.key_id,
                    secret_hash=request.secret_hash,
                    display_name=request.display_name,
                    role=request.role,
                    expires_at=expires_at,
                ),
            )
        return pb.CreateKeyResponse(key=key)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Keys of a namespace, newest first."""
        if request.limit < 1:
            raise field_invalid(("limit", f"must be 1 to {MAX_PAGE}"))
        with store_refusals():
            keys = await identity.list_keys(
                self._engine,
                request.namespace,
                after_key_id=request.after_key_id,
                show_revoked=request.show_revoked,
                limit=min(request.limit, MAX_PAGE),
            )
        return pb.ListKeysResponse(keys=keys)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Revoke a key; again changes nothing. The cluster's last administrator's key is refused."""
        with store_refusals():
            key = await identity.revoke_key(self._engine, request.namespace, request.key_id)
        return pb.RevokeKeyResponse(key=key)

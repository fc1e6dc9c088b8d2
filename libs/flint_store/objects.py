"""Chunks of payloads in an S3-compatible service. The client is synchronous: every call runs in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from flint_store.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from flint_ops.config import PayloadSettings

__all__ = ["Objects"]

_TIMEOUT_S: Final = 10
_ATTEMPTS: Final = 2
_AT_ONCE: Final = 16
"""Objects that are deleted at the same time."""


class Objects:
    """One bucket. Safe for concurrent use from one event loop. Raises `StoreError` when the client is not installed."""

    def __init__(self, settings: PayloadSettings) -> None:
        try:
            import boto3  # noqa: PLC0415 - an extra, needed only where payloads.store is s3
            from botocore.config import Config  # noqa: PLC0415
        except ImportError:
            raise StoreError("payloads.store is s3: install flint-engine[s3]") from None
        if not settings.s3_bucket:
            raise StoreError("payloads.store is s3: name the bucket in payloads.s3_bucket")
        self._bucket = settings.s3_bucket
        self._prefix = settings.s3_prefix
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint or None,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key.get_secret_value() or None,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value() or None,
            config=Config(
                connect_timeout=_TIMEOUT_S,
                read_timeout=_TIMEOUT_S,
                retries={"max_attempts": _ATTEMPTS, "mode": "standard"},
                # Services that are compatible with S3 do not all know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def put(self, namespace: str, sha256: bytes, index: int, data: bytes) -> None:
        """Store one chunk. Raises StoreUnavailable."""
        await self._ask("put_object", Key=self._key(namespace, sha256, index), Body=data)

    async def get(self, namespace: str, sha256: bytes, index: int) -> bytes | None:
        """One chunk, or None. Raises StoreUnavailable."""
        return await asyncio.to_thread(self._read, self._key(namespace, sha256, index))

    async def drop(self, namespace: str, sha256: bytes, chunks: int) -> None:
        """Delete the chunks; those that are gone are no error. Raises StoreUnavailable."""
        keys = [self._key(namespace, sha256, index) for index in range(chunks)]
        for at in range(0, chunks, _AT_ONCE):
            await asyncio.gather(*(self._ask("delete_object", Key=key) for key in keys[at : at + _AT_ONCE]))

    async def stored(self, namespace: str, sha256: bytes) -> tuple[int, int]:
        """How many chunks are there, and their bytes together. Raises StoreUnavailable."""
        return await asyncio.to_thread(self._count, f"{self._prefix}{namespace}/{sha256.hex()}/")

    def _count(self, prefix: str) -> tuple[int, int]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            sizes = [content["Size"] for page in pages for content in page.get("Contents", ())]
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailable(f"S3: {error}") from None
        return len(sizes), sum(sizes)

    def _key(self, namespace: str, sha256: bytes, index: int) -> str:
        return f"{self._prefix}{namespace}/{sha256.hex()}/{index}"

    def _read(self, key: str) -> bytes | None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise StoreUnavailable(f"S3: {error}") from None
        except BotoCoreError as error:
            raise StoreUnavailable(f"S3: {error}") from None
        return content

    async def _ask(self, operation: str, **arguments: Any) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            await asyncio.to_thread(getattr(self._client, operation), Bucket=self._bucket, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailable(f"S3: {error}") from None

"""The same store with its chunks in an S3-compatible service."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from sqlalchemy import text

from flint_bus.payloads import CHUNK_BYTES, PayloadMissing
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.payloads import Payload, Reference
from flint_ops.config import PayloadSettings
from flint_store import payloads
from flint_store.engine import write
from flint_store.objects import Objects

BUCKET = "flint-payloads"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    ).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


@pytest.fixture
def settings(endpoint: str) -> PayloadSettings:
    return PayloadSettings(
        store="s3",
        s3_endpoint=endpoint,
        s3_bucket=BUCKET,
        s3_access_key=SecretStr("key"),
        s3_secret_key=SecretStr("secret"),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_chunks_stand_in_the_bucket_and_not_in_postgresql(shop):
    data = os.urandom(2 * CHUNK_BYTES + 5)
    payload = Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)
    await shop.client.put("default", payload)
    assert await shop.client.get("default", payload.reference) == data
    assert not await write(shop.engine, text("SELECT 1 FROM payload_chunk"), {})
    await write(shop.engine, text("UPDATE payload SET touched_at = now() - interval '2 days' RETURNING 1"), {})
    assert await shop.desk.drop_unused() == 1
    with pytest.raises(PayloadMissing):
        await shop.client.get("default", payload.reference)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_objects_of_what_was_stored_again_stay(shop, settings):
    data = os.urandom(CHUNK_BYTES + 5)
    payload = Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)
    digest = bytes.fromhex(payload.reference.sha256)
    await shop.client.put("default", payload)
    async with payloads.unless_stored(shop.engine, "default", digest) as gone:
        assert not gone
    # The objects are gone although somebody is about to complete the payload: it has to be sent again.
    objects = Objects(settings)
    await write(shop.engine, text("DELETE FROM payload RETURNING 1"), {})
    assert await objects.stored("default", digest) == (2, len(data))
    async with payloads.unless_stored(shop.engine, "default", digest) as gone:
        assert gone
        await objects.drop("default", digest, 2)
    finish = dispatch_pb2.FinishPayload(sha256=digest, size=len(data), chunks=2)
    assert (await shop.client._ask("default", finish=finish)).incomplete
    await shop.client.put("default", payload)
    assert await shop.client.get("default", payload.reference) == data

"""etcd's messages and stubs, as aetcd generates them.

They are built at import time and carry no types, so this is the one place where they become `Any`.
"""

from __future__ import annotations

from typing import Any

from aetcd.rpc import kv_pb2, rpc_pb2, rpc_pb2_grpc

__all__ = ["kv", "rpc", "stubs"]

kv: Any = kv_pb2
rpc: Any = rpc_pb2
stubs: Any = rpc_pb2_grpc

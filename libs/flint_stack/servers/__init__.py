"""The embedded servers: real PostgreSQL, NATS and etcd programs from wheels, driven as child processes."""

from flint_stack.servers.etcd import EtcdServer
from flint_stack.servers.nats import NatsServer, NatsUser
from flint_stack.servers.postgres import PostgresServer

__all__ = ["EtcdServer", "NatsServer", "NatsUser", "PostgresServer"]

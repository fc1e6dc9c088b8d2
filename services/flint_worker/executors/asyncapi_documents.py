"""What an AsyncAPI document, 2.x or 3.x, says about where and how a message goes.

Pure: the document is given, nothing is fetched. References within the document are followed, others refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from flint_core.functions.asyncapi import REFUSED_PROTOCOLS
from flint_core.problems import ProblemType
from flint_worker.executors.faults import Fault, invalid

__all__ = ["Place", "find_place", "unusable"]

_VARIABLE: Final = re.compile(r"\{([^{}]{1,200})\}")
_LOCATION: Final = re.compile(r"\$message\.(payload|header)#(/.*)?")
_PROTOCOLS: Final = {
    # protocol in the document → protocol of the language, TLS, default port
    "amqp": ("amqp", False, 5672),
    "amqps": ("amqp", True, 5671),
    "http": ("http", False, 80),
    "https": ("http", True, 443),
    "mqtt": ("mqtt", False, 1883),
    "mqtts": ("mqtt", True, 8883),
    "secure-mqtt": ("mqtt", True, 8883),
    "mqtt5": ("mqtt5", False, 1883),
    "mqtts5": ("mqtt5", True, 8883),
    "nats": ("nats", False, 4222),
    "nats+tls": ("nats", True, 4222),
}
_SECURE_SCHEMES: Final = frozenset({"amqps", "https", "mqtts", "ssl", "tls", "nats+tls"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message goes or comes from. `path` is what follows host and port in the server's address."""

    protocol: str
    tls: bool
    host: str
    port: int
    path: str
    address: str
    content_type: str
    channel_binding: Mapping[str, Any]
    operation_binding: Mapping[str, Any]


def unusable(detail: str) -> Fault:
    """The document is not one that can be worked with."""
    return Fault(ProblemType.CONFIGURATION, 400, "The AsyncAPI document cannot be used", detail)


def find_place(document: Any, arguments: dict[str, Any]) -> Place:
    """The place that a call's arguments name. `document` has `root` and `resolve`. Raises Fault."""
    version = str(document.root.get("asyncapi", ""))
    reader: _Reader
    if version.startswith("2."):
        reader = _Version2(document)
    elif version.startswith("3."):
        reader = _Version3(document)
    else:
        raise unusable("it is not an AsyncAPI document of version 2 or 3")
    channel, operation, address = reader.target(arguments)
    server = _server(reader, reader.servers_of(channel), arguments)
    variables = arguments.get("server", {}).get("variables", {})
    protocol, tls, port = _PROTOCOLS[_protocol(server)]
    if protocol == "mqtt" and str(server.get("protocolVersion", "")).startswith("5"):
        protocol = "mqtt5"
    text = _filled(reader.address_of(server), _known(reader, server.get("variables"), variables))
    parts = urlsplit(text if "://" in text else f"//{text}")
    try:
        host, port = parts.hostname or "", parts.port or port
    except ValueError:
        raise unusable("the server's address is not usable") from None
    if not host:
        raise unusable("the server's address names no host")
    message = reader.message_of(operation, channel)
    content_type = message.get("contentType") or document.root.get("defaultContentType") or ""
    name = protocol.removesuffix("5")
    return Place(
        protocol,
        tls or parts.scheme in _SECURE_SCHEMES,
        host,
        port,
        parts.path,
        _filled(address, _parameters(reader, channel, arguments)),
        str(content_type),
        _binding(reader, channel, name),
        _binding(reader, operation, name),
    )


class _Reader:
    """What the two versions of the format have in common."""

    def __init__(self, document: Any) -> None:
        self.root: dict[str, Any] = document.root
        self._resolve: Callable[[Any], Any] = document.resolve

    def at(self, node: Any) -> dict[str, Any]:
        """The object that a node is or refers to; empty for anything else."""
        found = self._resolve(node)
        return found if isinstance(found, dict) else {}

    def section(self, name: str) -> dict[str, Any]:
        found = self.root.get(name)
        return found if isinstance(found, dict) else {}

    def named(self, section: str, name: str, what: str) -> dict[str, Any]:
        members = self.section(section)
        if name not in members:
            known = ", ".join(sorted(members))[:300]
            raise invalid(f"the document has no {what} '{name[:100]}'; it has {known or 'none'}", "No such place")
        return self.at(members[name])

    def target(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
        raise NotImplementedError

    def servers_of(self, channel: dict[str, Any]) -> dict[str, dict[str, Any]]:
        raise NotImplementedError

    def address_of(self, server: dict[str, Any]) -> str:
        raise NotImplementedError

    def message_of(self, operation: dict[str, Any], channel: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class _Version2(_Reader):
    """Channels are named by their address; `publish` is what clients send, `subscribe` what they get."""

    def target(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
        way = "publish" if "message" in arguments else "subscribe"
        name = arguments.get("channel", "")
        if not name:
            name = self._channel_of(arguments["operation"], way)
        channel = self.named("channels", name, "channel")
        return channel, self.at(channel.get(way, {})), name

    def _channel_of(self, operation: str, way: str) -> str:
        for name, node in self.section("channels").items():
            if self.at(self.at(node).get(way, {})).get("operationId") == operation:
                return str(name)
        raise invalid(f"the document has no operation '{operation[:100]}' to {way}", "No such place")

    def servers_of(self, channel: dict[str, Any]) -> dict[str, dict[str, Any]]:
        servers = {name: self.at(node) for name, node in self.section("servers").items()}
        named = channel.get("servers")
        if isinstance(named, list) and named:
            return {name: server for name, server in servers.items() if name in named}
        return servers

    def address_of(self, server: dict[str, Any]) -> str:
        return str(server.get("url", ""))

    def message_of(self, operation: dict[str, Any], channel: dict[str, Any]) -> dict[str, Any]:
        return self.at(operation.get("message", {}))


class _Version3(_Reader):
    """Operations are named and refer to their channel."""

    def target(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
        if "operation" in arguments:
            operation = self.named("operations", arguments["operation"], "operation")
            channel = self.at(operation.get("channel", {}))
            name = str(self.at_name(operation.get("channel")))
        else:
            operation, name = {}, arguments["channel"]
            channel = self.named("channels", name, "channel")
        if not channel:
            raise unusable("the operation names no channel")
        address = channel.get("address")
        return channel, operation, str(name if address is None else address)

    @staticmethod
    def at_name(node: Any) -> str:
        reference = node.get("$ref", "") if isinstance(node, dict) else ""
        return str(reference).rpartition("/")[2].replace("~1", "/").replace("~0", "~")

    def servers_of(self, channel: dict[str, Any]) -> dict[str, dict[str, Any]]:
        servers = {name: self.at(node) for name, node in self.section("servers").items()}
        named = channel.get("servers")
        if isinstance(named, list) and named:
            wanted = {self.at_name(node) for node in named}
            return {name: server for name, server in servers.items() if name in wanted}
        return servers

    def address_of(self, server: dict[str, Any]) -> str:
        path = str(server.get("pathname", ""))
        return f"{server.get('host', '')}{path if not path or path.startswith('/') else '/' + path}"

    def message_of(self, operation: dict[str, Any], channel: dict[str, Any]) -> dict[str, Any]:
        messages = operation.get("messages")
        if isinstance(messages, list) and messages:
            return self.at(messages[0])
        of_channel = channel.get("messages")
        if isinstance(of_channel, dict) and of_channel:
            return self.at(next(iter(of_channel.values())))
        return {}


def _protocol(server: dict[str, Any]) -> str:
    return str(server.get("protocol", "")).lower()


def _server(reader: _Reader, servers: dict[str, dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """The server that is named, or the first with the wanted protocol, or the first that can be spoken to."""
    if "server" in arguments:
        name = arguments["server"]["name"]
        if name not in servers:
            known = ", ".join(servers)[:300]
            raise invalid(f"the channel has no server '{name[:100]}'; it has {known or 'none'}", "No such place")
        return _spoken(servers[name])
    wanted = arguments.get("protocol")
    for server in servers.values():
        spoken = _PROTOCOLS.get(_protocol(server))
        if spoken is None:
            continue
        version5 = spoken[0] == "mqtt" and str(server.get("protocolVersion", "")).startswith("5")
        if wanted is None or wanted == spoken[0] or (wanted == "mqtt5" and version5):
            return server
    if wanted is not None:
        raise invalid(f"the channel has no server for the protocol '{wanted}'", "No such place")
    for server in servers.values():
        return _spoken(server)
    raise unusable("the channel has no server")


def _spoken(server: dict[str, Any]) -> dict[str, Any]:
    protocol = _protocol(server)
    if protocol not in _PROTOCOLS:
        reason = REFUSED_PROTOCOLS.get(protocol, "it is not one that Flint knows")
        title = f"The protocol '{protocol[:40]}' is not supported"
        raise Fault(ProblemType.CONFIGURATION, 501, title, reason)
    return server


def _known(reader: _Reader, variables: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """The values of a server's variables: given, or their defaults."""
    known: dict[str, str] = {}
    for name, node in variables.items() if isinstance(variables, dict) else ():
        variable = reader.at(node)
        value = given.get(name, variable.get("default"))
        allowed = variable.get("enum")
        if isinstance(allowed, list) and allowed and value not in allowed:
            raise invalid(f"/server/variables/{name}: not one of those that the document allows")
        if value is not None:
            known[name] = str(value)
    return known


def _parameters(reader: _Reader, channel: dict[str, Any], arguments: dict[str, Any]) -> dict[str, str]:
    """The values of a channel's parameters: where the document says the message holds them, or their defaults."""
    known: dict[str, str] = {}
    parameters = channel.get("parameters")
    message = arguments.get("message", {})
    for name, node in parameters.items() if isinstance(parameters, dict) else ():
        parameter = reader.at(node)
        value: Any = None
        location = _LOCATION.fullmatch(str(parameter.get("location", "")))
        if location is not None:
            value = message.get("payload") if location.group(1) == "payload" else message.get("headers")
            for part in (location.group(2) or "").split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            schema = reader.at(parameter.get("schema", {}))
            value = parameter.get("default", schema.get("default"))
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            known[name] = str(value)
    return known


def _filled(text: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match.group(1) not in values:
            raise invalid(f"'{match.group(1)}' in the address has no value", "No such place")
        return values[match.group(1)]

    return _VARIABLE.sub(value, text)


def _binding(reader: _Reader, node: dict[str, Any], protocol: str) -> dict[str, Any]:
    return reader.at(reader.at(node.get("bindings", {})).get(protocol, {}))

"""What a function's schema is made of: the spec, and the parts that several functions share. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "AUTHENTICATION",
    "DURATION",
    "ENDPOINT",
    "NAME",
    "PERSON",
    "RESOURCE",
    "SCALAR",
    "VALUES",
    "FunctionSpec",
    "Schema",
    "function",
    "object_of",
]

Schema = dict[str, Any]

_EXPRESSION: Final[Schema] = {"type": "string", "pattern": r"\$\{[\s\S]*\}"}


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """One function. `schema` and `resolved`: JSON Schema (2020-12) of `with`. `outputs`: JSON Schema of the result."""

    name: str
    schema: Schema
    resolved: Schema
    description: str
    outputs: Schema


def _or_expression(schema: Schema) -> Schema:
    """The same schema where every value may be an expression. A schema without a type takes anything already."""
    if schema.keys() <= {"description"}:
        return schema
    relaxed = dict(schema)
    for word in ("properties", "$defs"):
        if word in schema:
            relaxed[word] = {name: _or_expression(part) for name, part in schema[word].items()}
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            relaxed[word] = _or_expression(schema[word])
    for word in ("oneOf", "anyOf"):
        if word in schema and "type" in schema[word][0]:
            relaxed[word] = [_members(part) for part in schema[word]]
    description = relaxed.pop("description", None)
    either: Schema = {"anyOf": [relaxed, _EXPRESSION]}
    return either if description is None else {"description": description, **either}


def _members(schema: Schema) -> Schema:
    """The same schema where the values inside may be expressions, but not the whole."""
    relaxed = _or_expression(schema)
    inner: Schema = relaxed["anyOf"][0]
    return inner


def function(name: str, description: str, resolved: Schema, outputs: Schema) -> FunctionSpec:
    """A function from the schema of its resolved arguments."""
    return FunctionSpec(name, _members(resolved), resolved, description, outputs)


def object_of(required: list[str], properties: dict[str, Schema], **more: Any) -> Schema:
    """The schema of an object with these members and no others."""
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


SCALAR: Final[Schema] = {"type": ["string", "number", "boolean", "null"]}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 63}
VALUES: Final[Schema] = {"anyOf": [SCALAR, {"type": "array", "items": SCALAR, "maxItems": 1000}]}
"""One value, or several under the same name."""
PERSON: Final[Schema] = object_of(
    ["username", "password"], {"username": {"type": "string"}, "password": {"type": "string"}}
)

_SECRET: Final[Schema] = object_of(["use"], {"use": {**NAME, "description": "a secret that holds the policy as JSON"}})
_SECRET_TEXT: Final[Schema] = {"type": "string", "minLength": 1, "description": "the JSON text that a secret holds"}
_TOKEN: Final[Schema] = object_of(["token", "type"], {"token": {"type": "string"}, "type": {"type": "string"}})
_OIDC: Final[dict[str, Schema]] = {
    "authority": {"type": "string", "minLength": 1, "description": "base URI of the authorization server"},
    "grant": {
        "type": "string",
        "enum": [
            "client_credentials",
            "password",
            "refresh_token",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ],
    },
    "client": object_of(
        [],
        {
            "id": {"type": "string"},
            "secret": {"type": "string"},
            "assertion": {"type": "string", "description": "a signed JWT, for the two *_jwt ways"},
            "key": {
                "type": "string",
                "description": "private key (PEM or JWK) that signs for private_key_jwt (Flint's addition)",
            },
            "authentication": {
                "type": "string",
                "enum": ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "none"],
            },
        },
    ),
    "request": object_of(
        [],
        {"encoding": {"type": "string", "enum": ["application/x-www-form-urlencoded", "application/json"]}},
    ),
    "issuers": {"type": "array", "items": {"type": "string"}, "description": "issuers that a token may name"},
    "scopes": {"type": "array", "items": {"type": "string"}},
    "audiences": {"type": "array", "items": {"type": "string"}},
    "username": {"type": "string"},
    "password": {"type": "string"},
    "refresh_token": {"type": "string", "description": "for the grant refresh_token (Flint's addition)"},
    "subject": _TOKEN,
    "actor": _TOKEN,
}
_OAUTH2: Final[dict[str, Schema]] = {
    **_OIDC,
    "endpoints": object_of(
        [],
        {
            "token": {"type": "string", "description": "path below the authority, or a URI; /oauth2/token unless told"},
            "revocation": {"type": "string"},
            "introspection": {"type": "string"},
        },
    ),
}

AUTHENTICATION: Final[Schema] = object_of(
    [],
    {
        "basic": {"anyOf": [PERSON, _SECRET, _SECRET_TEXT]},
        "digest": {"anyOf": [PERSON, _SECRET, _SECRET_TEXT]},
        "bearer": {
            "anyOf": [object_of(["token"], {"token": {"type": "string", "minLength": 1}}), _SECRET, _SECRET_TEXT]
        },
        "oauth2": {"anyOf": [object_of(["authority", "grant"], _OAUTH2), _SECRET, _SECRET_TEXT]},
        "oidc": {"anyOf": [object_of(["authority", "grant"], _OIDC), _SECRET, _SECRET_TEXT]},
    },
    minProperties=1,
    maxProperties=1,
)
"""One policy, inline. A named one (`use: NAME`) stands inline once the definition is compiled."""

ENDPOINT: Final[Schema] = {
    "description": "the address: a URI, or an object with `uri` and `authentication`",
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 8192},
        object_of(
            ["uri"],
            {
                "uri": {"type": "string", "minLength": 1, "maxLength": 8192},
                "authentication": AUTHENTICATION,
                "variables": {
                    "type": "object",
                    "maxProperties": 100,
                    "description": "what fills the URI's template (RFC 6570); members of the input unless told",
                },
            },
        ),
    ],
}

RESOURCE: Final[Schema] = object_of(
    ["endpoint"],
    {"name": {"type": "string", "maxLength": 256}, "endpoint": ENDPOINT},
    description="a document that is fetched over http(s)",
)
"""The specification's external resource."""

DURATION: Final[Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 100},
        object_of(
            [],
            {
                unit: {"type": "number", "minimum": 0}
                for unit in ("days", "hours", "minutes", "seconds", "milliseconds")
            },
            minProperties=1,
        ),
    ],
    "description": "a duration: an object such as {seconds: 30}, or ISO 8601",
}

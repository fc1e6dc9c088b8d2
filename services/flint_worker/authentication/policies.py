"""A policy as it comes from the arguments of a call, checked. No message here repeats what a policy holds."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jsonschema_rs
import orjson

from flint_core.functions.schemas import AUTHENTICATION
from flint_core.problems import ProblemType
from flint_worker.executors.faults import Fault

__all__ = ["AuthenticationFailed", "Policy", "read_policy"]

_VALIDATOR: Final = jsonschema_rs.validator_for(AUTHENTICATION, mask="the value")
_SALT: Final = secrets.token_bytes(32)
"""Of this process: a policy's key tells nothing to whoever sees it."""


class AuthenticationFailed(Fault):
    """No credentials could be had, or they were not accepted. Holds no secret."""

    def __init__(
        self,
        title: str,
        detail: str = "",
        type_: str = ProblemType.AUTHENTICATION,
        status: int = 401,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(type_, status, title, detail, retry_after_ms)


class Policy(NamedTuple):
    """A checked policy. `key` is equal for equal policies and tells nothing about them."""

    scheme: str
    members: Mapping[str, Any]
    key: bytes


def read_policy(given: Mapping[str, Any]) -> Policy:
    """The policy. Raises AuthenticationFailed (configuration) when it is none."""
    if len(given) != 1:
        raise _unusable("", "it must have exactly one of basic, bearer, digest, oauth2 and oidc")
    ((scheme, members),) = given.items()
    if isinstance(members, str):
        members = _from_secret(scheme, members)
    for error in _VALIDATOR.iter_errors({scheme: members}):
        place = "".join(f"/{step}" for step in error.instance_path)
        raise _unusable(scheme, f"{place or '/'}: {error.message[:200]}")
    if "use" in members:
        raise _unusable(scheme, "it names a secret that was not resolved")
    text = orjson.dumps([scheme, members], option=orjson.OPT_SORT_KEYS)
    return Policy(scheme, members, hashlib.blake2b(text, key=_SALT, digest_size=32).digest())


def _from_secret(scheme: str, text: str) -> Any:
    """A secret holds the policy's members as a JSON object; of a bearer policy, maybe nothing but the token."""
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError:
        members = None
    if isinstance(members, dict):
        return members
    if scheme == "bearer" and text.strip():
        return {"token": text.strip()}
    raise _unusable(scheme, "its secret does not hold a JSON object")


def _unusable(scheme: str, detail: str) -> AuthenticationFailed:
    title = f"The authentication policy '{scheme[:20]}' cannot be used" if scheme else "No usable authentication policy"
    return AuthenticationFailed(title, detail, ProblemType.CONFIGURATION, 400)

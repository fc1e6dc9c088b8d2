"""JWTs by which a client proves who it is (RFC 7523, section 2.2): signed with its secret or its private key."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from flint_core.problems import ProblemType
from flint_worker.authentication.policies import AuthenticationFailed

__all__ = ["client_assertion"]

_LIFE_S: Final = 60
_BY_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def client_assertion(client: Mapping[str, Any], way: str, endpoint: str) -> str:
    """A fresh assertion, good for a minute and one use. Raises AuthenticationFailed (configuration)."""
    # Imported here: cryptography takes its time, and few policies sign anything.
    from joserfc import jwt  # noqa: PLC0415
    from joserfc.errors import JoseError  # noqa: PLC0415
    from joserfc.jwk import OctKey  # noqa: PLC0415

    now = int(time.time())
    claims = {
        "iss": client["id"],
        "sub": client["id"],
        "aud": endpoint,
        "jti": secrets.token_hex(16),
        "iat": now,
        "exp": now + _LIFE_S,
    }
    try:
        if way == "client_secret_jwt":
            if not client.get("secret"):
                raise _unusable("client_secret_jwt needs /client/secret")
            return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(client["secret"]))
        if not client.get("key"):
            raise _unusable("private_key_jwt needs /client/assertion or /client/key")
        key = _private_key(client["key"])
        header = {"alg": _algorithm(key)}
        if key.kid:
            header["kid"] = key.kid
        return jwt.encode(header, claims, key, algorithms=[header["alg"]])
    except (JoseError, ValueError, TypeError):
        raise _unusable("its key cannot sign") from None


def _private_key(text: str) -> Any:
    from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key  # noqa: PLC0415

    if text.lstrip().startswith("{"):
        return import_key(orjson.loads(text))
    for kind in (RSAKey, ECKey, OKPKey):
        try:
            return kind.import_key(text)
        except (ValueError, TypeError):
            continue
    raise _unusable("/client/key is neither a JWK nor a PEM text")


def _algorithm(key: Any) -> str:
    told = key.get("alg") if hasattr(key, "get") else None
    if isinstance(told, str) and told != "none" and not told.startswith("HS"):
        return told
    if key.key_type == "EC":
        return _BY_CURVE.get(key.curve_name, "ES256")
    return "EdDSA" if key.key_type == "OKP" else "RS256"


def _unusable(detail: str) -> AuthenticationFailed:
    return AuthenticationFailed("The client's assertion cannot be made", detail, ProblemType.CONFIGURATION, 400)

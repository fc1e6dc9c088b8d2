"""Credentials for requests: a policy of the definition becomes headers.

    authenticator = Authenticator(client, settings)
    headers = await authenticator.headers(policy, "GET", "https://api.example.com/orders", b"")

`policy` is one object of the shape AUTHENTICATION, secrets resolved; a member that came from a secret may be its
JSON text. Where the answer is 401, `challenged` says what to send instead, if anything: the answer to a digest
challenge, or a fresh token. Clients of httpx take `auth`, which does both by itself.

Own code rather than Authlib: its clients are sessions bound to one token and one HTTP library, while Flint needs the
headers alone (for HTTP, gRPC and others), a cache that hundreds of runs share with one fetch at a time, errors that
hold no secret, and every request through the worker's guarded client. JWTs are signed by joserfc (of Authlib's author).
httpx's digest takes the first challenge it finds, knows neither auth-int nor userhash, and works within httpx only.
"""

from __future__ import annotations

from flint_worker.authentication.authenticator import Authenticator, PolicyAuth
from flint_worker.authentication.policies import AuthenticationFailed

__all__ = ["AuthenticationFailed", "Authenticator", "PolicyAuth"]

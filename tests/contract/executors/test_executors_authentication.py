"""Authentication policies against an authority and digest servers of the test's own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import Settings, WorkerSettings
from flint_worker.authentication import AuthenticationFailed
from flint_worker.authentication.digest import DigestMemory
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.http import HttpExecutor
from flint_worker.executors.outbound import Outbound
from support.authority import Authority, jwt_of
from support.eventually import eventually
from support.web import web_server

CLIENT = {"id": "me", "secret": "hush-hush"}


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def url(authority: Authority) -> AsyncIterator[str]:
    async with web_server(authority.app) as address:
        yield address
        authority.gate.set()


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    made = Outbound(Settings(worker=WorkerSettings(allow_private_addresses=True, token_cache_entries=3)))
    yield made
    await made.close()


async def token(outbound: Outbound, policy: dict[str, Any]) -> str:
    headers = await outbound.authenticator.headers(policy, "GET", "http://127.0.0.1/")
    return headers["authorization"].removeprefix("Bearer ")


def oauth2(url: str, **members: Any) -> dict[str, Any]:
    given = {"authority": f"{url}/realm", "grant": "client_credentials", "client": CLIENT, **members}
    return {"oauth2": {name: value for name, value in given.items() if value is not None}}


async def call(outbound: Outbound, endpoint: str, policy: Any, **arguments: Any) -> Any:
    given = {"method": "get", "endpoint": {"uri": endpoint, "authentication": policy}, **arguments}
    return await HttpExecutor(Settings(), outbound).execute(ResolvedCall("http", given, "", "/do/0/x", "run", "", 30))


# --- simple policies


async def test_policies_that_are_headers(outbound: Outbound) -> None:
    headers = outbound.authenticator.headers
    basic = {"authorization": "Basic " + base64.b64encode("ü:p:w".encode()).decode()}
    assert await headers({"basic": {"username": "ü", "password": "p:w"}}, "GET", "http://x/") == basic
    assert await headers({"basic": '{"username": "ü", "password": "p:w"}'}, "GET", "http://x/") == basic
    assert await headers({"bearer": {"token": "t"}}, "GET", "http://x/") == {"authorization": "Bearer t"}
    assert await headers({"bearer": " t\n"}, "GET", "http://x/") == {"authorization": "Bearer t"}


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"basic": {"username": "u", "password": "hush-hush"}, "bearer": {"token": "t"}},
        {"basic": {"username": "u"}},
        {"basic": "hush-hush"},
        {"basic": '["hush-hush"]'},
        {"basic": {"use": "name"}},
        {"bearer": {"token": "hush\nhush"}},
        {"magic": {"token": "hush-hush"}},
        {"oauth2": {"authority": "http://127.0.0.1/", "grant": "implicit"}},
        {"oauth2": {"authority": "ftp://127.0.0.1/", "grant": "client_credentials"}},
        {"oauth2": {"authority": "http://127.0.0.1/", "grant": "password", "password": "hush-hush"}},
        {
            "oauth2": {
                "authority": "http://127.0.0.1/",
                "grant": "client_credentials",
                "client": {"id": "x", "authentication": "private_key_jwt", "key": "hush-hush"},
            }
        },
    ],
)
async def test_policies_that_cannot_be_used(outbound: Outbound, policy: Any) -> None:
    from flint_worker.executors.faults import Fault

    with pytest.raises(Fault) as raised:
        await outbound.authenticator.headers(policy, "GET", "http://x/")
    assert raised.value.status in (400, 401)
    assert "hush" not in raised.value.title + raised.value.detail


# --- requests for tokens


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({}, {"grant_type": "client_credentials", "client_id": "me", "client_secret": "hush-hush"}),
        (
            {"scopes": ["a", "b"], "audiences": ["x", "y"]},
            {"scope": "a b", "audience": ["x", "y"]},
        ),
        (
            {"grant": "password", "username": "ada", "password": "p&w"},
            {"grant_type": "password", "username": "ada", "password": "p&w"},
        ),
        (
            {"grant": "refresh_token", "refresh_token": "r"},
            {"grant_type": "refresh_token", "refresh_token": "r"},
        ),
        (
            {
                "grant": "urn:ietf:params:oauth:grant-type:token-exchange",
                "subject": {"token": "s", "type": "jwt"},
                "actor": {"token": "a", "type": "urn:x:y"},
            },
            {
                "subject_token": "s",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "actor_token": "a",
                "actor_token_type": "urn:x:y",
            },
        ),
        ({"client": {"id": "m:e", "secret": "s:", "authentication": "client_secret_basic"}}, {"_basic": ["m:e", "s:"]}),
        ({"client": {"id": "me", "authentication": "none"}}, {"client_id": "me"}),
        ({"client": None}, {"grant_type": "client_credentials"}),
        (
            {"client": {"id": "me", "assertion": "a.b.c", "authentication": "private_key_jwt"}},
            {
                "client_assertion": "a.b.c",
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            },
        ),
        ({"request": {"encoding": "application/json"}, "audiences": ["x"]}, {"_type": "application/json"}),
        ({"endpoints": {"token": "/own/token"}}, {"_path": "/realm/own/token"}),
    ],
)
async def test_what_is_sent(
    outbound: Outbound, authority: Authority, url: str, members: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert await token(outbound, oauth2(url, **members)) == "token-1"
    sent = authority.requests[0]
    assert {name: sent.get(name) for name in fields} == fields
    if "client" in members:
        assert "client_secret" not in sent


async def test_assertions_are_signed(outbound: Outbound, authority: Authority, url: str) -> None:
    rsa, curve = RSAKey.generate_key(2048), ECKey.generate_key("P-256", {"kid": "k1"})
    secret = "a-secret-that-is-long-enough-for-it"
    for way, client, key in (
        ("client_secret_jwt", {"secret": secret}, OctKey.import_key(secret)),
        ("private_key_jwt", {"key": rsa.as_pem(private=True).decode()}, rsa),
        ("private_key_jwt", {"key": __import__("json").dumps(curve.as_dict(private=True))}, curve),
    ):
        await token(outbound, oauth2(url, client={"id": "me", "authentication": way, **client}))
        sent = authority.requests[-1]
        decoded = jwt.decode(sent["client_assertion"], key, algorithms=["HS256", "RS256", "ES256"])
        assert decoded.claims["iss"] == decoded.claims["sub"] == "me"
        assert decoded.claims["aud"] == f"{url}/realm/oauth2/token"
        assert decoded.claims["exp"] - decoded.claims["iat"] <= 300
        assert "client_secret" not in sent
    assert decoded.header["kid"] == "k1"


async def test_a_token_is_fetched_once_for_all(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.gate.clear()
    waiting = [asyncio.create_task(token(outbound, oauth2(url))) for _ in range(20)]
    await eventually(lambda: len(authority.requests) == 1)
    waiting[0].cancel()
    authority.gate.set()
    assert set(await asyncio.gather(*waiting[1:])) == {"token-1"}
    assert await token(outbound, oauth2(url)) == "token-1"
    assert len(authority.requests) == 1
    assert await token(outbound, oauth2(url, scopes=["other"])) == "token-2"


async def test_a_token_is_replaced_before_it_expires(outbound: Outbound, authority: Authority, url: str) -> None:
    """For the last part of its life the old one is given out while the next is fetched."""
    assert await token(outbound, oauth2(url)) == "token-1"
    entry = next(iter(outbound.authenticator._tokens._entries.values()))
    entry.aging_at = 0.0
    authority.gate.clear()
    assert await token(outbound, oauth2(url)) == "token-1"
    assert await token(outbound, oauth2(url)) == "token-1"
    authority.gate.set()
    await eventually(lambda: entry.token == "token-2")
    assert len(authority.requests) == 2


@pytest.mark.parametrize("life_s", [0, "0", -5])
async def test_a_token_that_is_gone_is_not_used(
    outbound: Outbound, authority: Authority, url: str, life_s: Any
) -> None:
    authority.life_s = life_s if not isinstance(life_s, int) or life_s >= 0 else 0
    assert await token(outbound, oauth2(url)) == "token-1"
    assert await token(outbound, oauth2(url)) == "token-2"


async def test_refresh_tokens(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.life_s, authority.refresh_tokens = 0, True
    policy = oauth2(url, grant="password", username="ada", password="pw")
    assert [await token(outbound, policy) for _ in range(3)] == ["token-1", "token-2", "token-3"]
    assert [request["grant_type"] for request in authority.requests] == ["password", "refresh_token", "refresh_token"]
    assert authority.requests[2]["refresh_token"] == "refresh-2"
    authority.answer = lambda fields: (
        JSONResponse({"error": "invalid_grant"}, 400) if fields["grant_type"] == "refresh_token" else None
    )
    assert await token(outbound, policy) == "token-5"
    assert authority.requests[4]["grant_type"] == "password"


async def test_the_cache_is_bounded(outbound: Outbound, authority: Authority, url: str) -> None:
    for number in range(10):
        await token(outbound, oauth2(url, scopes=[str(number)]))
    assert len(outbound.authenticator._tokens._entries) == 3


async def test_a_refused_token_is_fetched_anew_once(outbound: Outbound, authority: Authority, url: str) -> None:
    answer = await call(outbound, f"{url}/resource", oauth2(url))
    assert answer["echo"] == "Bearer ***"
    authority.accepted.clear()
    await call(outbound, f"{url}/resource", oauth2(url))
    assert authority.asked == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]
    authority.make = lambda number: "worthless"
    authority.accepted.clear()

    def forget(fields: dict[str, Any]) -> Response:
        return JSONResponse({"access_token": "worthless"})

    authority.answer = forget
    with pytest.raises(ExecutionFailed) as raised:
        await call(outbound, f"{url}/resource", oauth2(url))
    assert raised.value.problem.status == 401
    assert authority.asked[3:] == ["Bearer token-2", "Bearer worthless"]


@pytest.mark.parametrize(
    ("status", "content", "type_", "seen"),
    [
        (400, {"error": "invalid_client", "error_description": "hush-hush"}, ProblemType.AUTHENTICATION, 401),
        (401, {}, ProblemType.AUTHENTICATION, 401),
        (503, {}, ProblemType.COMMUNICATION, 503),
        (429, {}, ProblemType.COMMUNICATION, 429),
        (200, {}, ProblemType.COMMUNICATION, 502),
        (200, {"access_token": "x", "token_type": "mac"}, ProblemType.AUTHENTICATION, 401),
    ],
)
async def test_an_authority_that_gives_nothing(
    outbound: Outbound, authority: Authority, url: str, status: int, content: Any, type_: str, seen: int
) -> None:
    authority.answer = lambda fields: JSONResponse(content, status, {"retry-after": "7"})
    with pytest.raises(ExecutionFailed) as raised:
        await call(outbound, f"{url}/resource", oauth2(url))
    problem = raised.value.problem
    assert (problem.type, problem.status) == (type_, seen)
    assert "hush" not in problem.title + problem.detail
    assert raised.value.retry_after_ms == (7000 if status in (429, 503) else None)
    authority.answer = lambda fields: None
    assert (await call(outbound, f"{url}/resource", oauth2(url)))["echo"] == "Bearer ***"


async def test_issuers_are_checked(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.make = lambda number: jwt_of({"iss": "https://good.example/", "n": number})
    assert await token(outbound, oauth2(url, issuers=["https://good.example"]))
    for issuers in (["https://other.example"], ["https://good.example.evil.example"]):
        with pytest.raises(AuthenticationFailed):
            await token(outbound, oauth2(url, issuers=issuers))
    authority.make = lambda number: "opaque"
    with pytest.raises(AuthenticationFailed):
        await token(outbound, oauth2(url, issuers=["https://good.example"], scopes=["x"]))


# --- discovery


def oidc(url: str, **members: Any) -> dict[str, Any]:
    return {"oidc": {"authority": f"{url}/realm", "grant": "client_credentials", "client": CLIENT, **members}}


async def test_discovery(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.life_s = 0
    assert await token(outbound, oidc(url)) == "token-1"
    assert await token(outbound, oidc(url)) == "token-2"
    written = oidc(url, authority=f"{url}/realm/.well-known/openid-configuration")
    assert await token(outbound, written) == "token-3"
    assert authority.requests[0]["_path"] == "/realm/own/token"
    assert authority.discoveries == 1


async def test_an_authority_that_knows_basic_alone(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.ways = ["client_secret_basic"]
    await token(outbound, oidc(url))
    assert authority.requests[0]["_basic"] == ["me", "hush-hush"]


async def test_another_issuer_is_refused(outbound: Outbound, authority: Authority, url: str) -> None:
    authority.issuer = "https://evil.example"
    with pytest.raises(AuthenticationFailed):
        await token(outbound, oidc(url))
    assert authority.requests == []


async def test_no_discovery(outbound: Outbound, url: str) -> None:
    with pytest.raises(ExecutionFailed) as raised:
        await call(outbound, f"{url}/resource", oidc(url, authority=f"{url}/nowhere"))
    assert (raised.value.problem.type, raised.value.problem.status) == (ProblemType.COMMUNICATION, 404)


# --- digest


def digest_app(challenges: list[str], algorithm: str, protection: str, userhash: bool = False) -> Starlette:
    """A server that checks each answer to its challenges, computed by itself."""
    name = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}[algorithm.removesuffix("-sess")]
    counts: list[str] = []

    def h(*parts: str) -> str:
        return hashlib.new(name, ":".join(parts).encode()).hexdigest()

    async def guarded(request: Request) -> Response:
        sent = request.headers.get("authorization", "")
        fields = {key: quoted or bare for key, quoted, bare in re.findall(r'(\w+\*?)=(?:"([^"]*)"|([^\s,]+))', sent)}
        secret = h("ada", "r,1", "pw")
        if algorithm.endswith("-sess"):
            secret = h(secret, "nonce", fields.get("cnonce", ""))
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        a2 = h(request.method, target)
        if protection == "auth-int":
            a2 = h(request.method, target, hashlib.new(name, await request.body()).hexdigest())
        wanted = (
            h(secret, "nonce", fields.get("nc", ""), fields.get("cnonce", ""), protection, a2)
            if protection
            else h(secret, "nonce", a2)
        )
        who = h("ada", "r,1") if userhash else "ada"
        if fields.get("response") == wanted and fields.get("username") == who and fields.get("uri") == target:
            counts.append(fields.get("nc", ""))
            return JSONResponse(counts)
        headers = [(b"www-authenticate", challenge.encode()) for challenge in challenges]
        response = PlainTextResponse("no", 401)
        response.raw_headers += headers
        return response

    return Starlette(routes=[Route("/guarded", guarded, methods=["GET", "POST"])])


ADA = {"digest": {"username": "ada", "password": "pw"}}


@pytest.mark.parametrize(
    ("challenges", "algorithm", "protection"),
    [
        (['Digest realm="r,1", nonce="nonce", qop="auth", algorithm=MD5, opaque="o"'], "MD5", "auth"),
        (['Digest realm="r,1",nonce="nonce"'], "MD5", ""),
        (['Digest realm="r,1", nonce="nonce", qop="auth,auth-int", algorithm=SHA-256'], "SHA-256", "auth"),
        (['Digest realm="r,1", nonce="nonce", qop="auth-int", algorithm=SHA-256'], "SHA-256", "auth-int"),
        (['Digest realm="r,1", nonce="nonce", qop="auth", algorithm=MD5-sess'], "MD5-sess", "auth"),
        (['Digest realm="r,1", nonce="nonce", qop="auth", algorithm=SHA-512-256'], "SHA-512-256", "auth"),
        (
            [
                'Basic realm="b"',
                'Digest realm="r,1", nonce="other", qop="auth", algorithm=MD5',
                'Digest realm="r,1", nonce="nonce", qop="auth", algorithm=SHA-256, userhash=false',
            ],
            "SHA-256",
            "auth",
        ),
        (
            [
                'Digest realm="r,1", nonce="n0", qop="auth", algorithm=MD5, '
                'Digest realm="r,1", nonce="nonce", qop="auth", algorithm=SHA-256'
            ],
            "SHA-256",
            "auth",
        ),
    ],
)
async def test_digest_challenges(outbound: Outbound, challenges: list[str], algorithm: str, protection: str) -> None:
    async with web_server(digest_app(challenges, algorithm, protection)) as url:
        for _ in range(2):
            answer = await call(outbound, f"{url}/guarded", ADA, method="post", body="body", query={"a": "b c"})
        assert answer == (["00000001", "00000002"] if protection else ["", ""])


async def test_digest_with_a_hashed_name(outbound: Outbound) -> None:
    challenge = 'Digest realm="r,1", nonce="nonce", qop="auth", algorithm=SHA-256, userhash=true'
    async with web_server(digest_app([challenge], "SHA-256", "auth", userhash=True)) as url:
        assert await call(outbound, f"{url}/guarded", ADA) == ["00000001"]


@pytest.mark.parametrize(
    "challenge",
    [
        'Digest realm="r,1", nonce="nonce", qop="auth", algorithm=SHA-256',
        'Digest realm="r,1", nonce="nonce", algorithm=NEWER',
        "Digest",
        "Basic",
        'Digest realm="r,1", nonce=""',
    ],
)
async def test_digest_that_does_not_help(outbound: Outbound, challenge: str) -> None:
    wrong = {"digest": {"username": "ada", "password": "wrong"}}
    async with web_server(digest_app([challenge], "SHA-256", "auth")) as url:
        with pytest.raises(ExecutionFailed) as raised:
            await call(outbound, f"{url}/guarded", wrong)
        assert raised.value.problem.status == 401


def test_the_examples_of_rfc_7616(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 3.9.1: the same request by MD5 and by SHA-256."""
    from flint_worker.authentication import digest

    monkeypatch.setattr(digest.secrets, "token_hex", lambda size: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")
    members = {"username": "Mufasa", "password": "Circle of Life"}
    challenge = (
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    for algorithm, response in (
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ):
        headers = DigestMemory().answer(
            b"", members, "GET", "http://www.example.org/dir/index.html", b"", "", [challenge.format(algorithm)]
        )
        assert headers is not None
        assert f'response="{response}"' in headers["authorization"]

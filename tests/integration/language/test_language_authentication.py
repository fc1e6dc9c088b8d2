"""Authentications: basic, bearer, digest, oauth2, oidc, each inline, by name and by secret."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flint_sdk import Run
from support.house import House
from support.language import Case, Outcome, check, run_cases
from support.language_world import World

AUTHENTICATION = "https://serverlessworkflow.io/spec/1.0.0/errors/authentication"


def guarded(kind: str, policy: str, output: Any, use: str = "", given: str = ".as", **more: Any) -> Case:
    """A call that must sign in."""
    head = f"use: {{secrets: [token, person, bearer]{use}}}\ntimeout: {{after: PT20S}}\n"
    body = f"do: [{{a: {{call: http, with: {{method: get, endpoint: {{uri: '<http>/guarded/{kind}', authentication: {policy}}}}}, output: {{as: '{given}'}}}}}}]"
    return Case(head + body, output, stubs=None, **more)


def granted(kind: str, policy: str, output: Any, given: str = ".token_type", **more: Any) -> Case:
    """A call with a token of the authority's."""
    body = f"""
use: {{secrets: [token, server]}}
timeout: {{after: PT20S}}
do:
  - a:
      call: http
      with:
        method: get
        endpoint: {{uri: '<http>/resource', authentication: {{{kind}: {policy}}}}}
      output: {{as: '{given}'}}
"""
    return Case(body, output, stubs=None, **more)


def asked(**fields: Any) -> Any:
    """The authority was asked for a token with exactly these fields, the scheme's own names apart."""

    async def look(house: House, world: World, run: Run) -> None:
        wanted = set(fields.items())
        assert any(
            wanted <= {(k, v) for k, v in request.items() if isinstance(v, str)} for request in world.authority.requests
        ), world.authority.requests

    return look


CLIENT = "grant: client_credentials"
KEY = json.dumps(
    rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
)
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SEEN = '${ .echo | startswith("Bearer ") or . == "***" }'

CASES = {
    "basic": guarded("basic", "{basic: {username: ada, password: s3cret}}", "ada"),
    "basic-by-secret": guarded("basic", "{basic: {use: person}}", "ada"),
    "basic-by-name": guarded(
        "basic", "{use: shop}", "ada", ", authentications: {shop: {basic: {username: ada, password: x}}}"
    ),
    "basic-by-plain-name": guarded(
        "basic", "shop", "ada", ", authentications: {shop: {basic: {username: ada, password: x}}}"
    ),
    "basic-by-name-and-secret": guarded(
        "basic", "{use: shop}", "ada", ", authentications: {shop: {basic: {use: person}}}"
    ),
    "basic-expressions": guarded(
        "basic", "{basic: {username: '${ .who }', password: '${ $secrets.token }'}}", "bob", input={"who": "bob"}
    ),
    "basic-missing": Case(
        "timeout: {after: PT20S}\ndo: [{a: {call: http, with: {method: get, endpoint: '<http>/guarded/basic'}}}]",
        error={"status": 401},
        stubs=None,
    ),
    "bearer": guarded("bearer", "{bearer: {token: t0ken-of-the-tests}}", True, given=".known"),
    "bearer-by-secret": guarded("bearer", "{bearer: {use: bearer}}", True, given=".known"),
    "bearer-expression": guarded("bearer", "{bearer: {token: '${ $secrets.token }'}}", True, given=".known"),
    "bearer-by-name": guarded(
        "bearer",
        "{use: shop}",
        True,
        ", authentications: {shop: {bearer: {token: '${ $secrets.token }'}}}",
        given=".known",
    ),
    "digest": guarded("digest", "{digest: {username: ada, password: s3cret}}", "ada"),
    "digest-by-secret": guarded("digest", "{digest: {use: person}}", "ada"),
    "digest-by-name": guarded(
        "digest", "{use: shop}", "ada", ", authentications: {shop: {digest: {username: ada, password: x}}}"
    ),
    # --- oauth2
    "oauth2-client-credentials": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c1, secret: s1}}}}",
        True,
        SEEN,
        check=asked(grant_type="client_credentials", client_id="c1", client_secret="s1"),
    ),
    "oauth2-authentication-post": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c2, secret: s2, authentication: client_secret_post}}}}",
        True,
        SEEN,
        check=asked(client_id="c2", client_secret="s2"),
    ),
    "oauth2-authentication-basic": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c3, secret: s3, authentication: client_secret_basic}}, scopes: [basic]}}",
        True,
        SEEN,
        check=asked(scope="basic"),
    ),
    "oauth2-authentication-jwt": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c4, secret: a-secret-of-at-least-32-characters!, authentication: client_secret_jwt}}}}",
        True,
        SEEN,
        check=asked(client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
    ),
    "oauth2-authentication-private-key-jwt": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c5, assertion: a.b.c, authentication: private_key_jwt}}}}",
        True,
        SEEN,
        check=asked(client_assertion="a.b.c"),
    ),
    "oauth2-authentication-none": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c6, authentication: none}}}}",
        True,
        SEEN,
        check=asked(client_id="c6"),
    ),
    "oauth2-encoding-json": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c7, secret: s7}}, request: {{encoding: application/json}}}}",
        True,
        SEEN,
        check=asked(client_id="c7", _type="application/json"),
    ),
    "oauth2-encoding-form": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c8, secret: s8}}, request: {{encoding: application/x-www-form-urlencoded}}}}",
        True,
        SEEN,
        check=asked(client_id="c8", _type="application/x-www-form-urlencoded"),
    ),
    "oauth2-scopes": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c9, secret: s9}}, scopes: [read, write]}}",
        True,
        SEEN,
        check=asked(client_id="c9", scope="read write"),
    ),
    "oauth2-audiences": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c10, secret: s}}, audiences: [shop]}}",
        True,
        SEEN,
        check=asked(client_id="c10", audience="shop"),
    ),
    "oauth2-endpoints-token": granted(
        "oauth2",
        f"{{authority: '<http>/realm', endpoints: {{token: /own/token}}, {CLIENT}, client: {{id: c11, secret: s}}}}",
        True,
        SEEN,
        check=asked(client_id="c11", _path="/realm/own/token"),
    ),
    "oauth2-endpoints-others": granted(
        "oauth2",
        f"{{authority: '<http>/realm', endpoints: {{revocation: /r, introspection: /i}}, {CLIENT}, client: {{id: c12, secret: s}}}}",
        True,
        SEEN,
        check=asked(client_id="c12"),
    ),
    "oauth2-password": granted(
        "oauth2",
        "{authority: '<http>/realm', grant: password, username: ada, password: pw, client: {id: c13, secret: s}}",
        True,
        SEEN,
        check=asked(grant_type="password", username="ada", password="pw"),
    ),
    "oauth2-refresh-token": granted(
        "oauth2",
        "{authority: '<http>/realm', grant: refresh_token, refresh_token: r1, client: {id: c14, secret: s}}",
        True,
        SEEN,
        check=asked(grant_type="refresh_token", refresh_token="r1"),
    ),
    "oauth2-token-exchange": granted(
        "oauth2",
        "{authority: '<http>/realm', grant: 'urn:ietf:params:oauth:grant-type:token-exchange', client: {id: c15, secret: s}, subject: {token: sub, type: 'urn:ietf:params:oauth:token-type:jwt'}, actor: {token: act, type: 'urn:ietf:params:oauth:token-type:jwt'}}",
        True,
        SEEN,
        check=asked(
            subject_token="sub",
            actor_token="act",
            subject_token_type="urn:ietf:params:oauth:token-type:jwt",
            actor_token_type="urn:ietf:params:oauth:token-type:jwt",
        ),
    ),
    "oauth2-issuers-refuse": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c16, secret: s}}, issuers: ['https://other.test']}}",
        None,
        error={"type": AUTHENTICATION},
    ),
    "oauth2-authority-template": granted(
        "oauth2",
        f"{{authority: '<http>/{{realm}}', {CLIENT}, client: {{id: c17, secret: s}}}}",
        True,
        SEEN,
        input={"realm": "realm"},
        check=asked(client_id="c17"),
    ),
    "oauth2-secret": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c18, secret: '${{ $secrets.token }}'}}}}",
        True,
        SEEN,
        check=asked(client_id="c18", client_secret="t0ken-of-the-tests"),
    ),
    "oauth2-by-name": Case(
        f"use: {{authentications: {{server: {{oauth2: {{authority: '<http>/realm', {CLIENT}, client: {{id: c19, secret: s}}}}}}}}}}\ntimeout: {{after: PT20S}}\ndo: [{{a: {{call: http, with: {{method: get, endpoint: {{uri: '<http>/resource', authentication: {{use: server}}}}}}, output: {{as: '${{ type }}'}}}}}}]",
        "object",
        stubs=None,
        check=asked(client_id="c19"),
    ),
    "oauth2-unreachable": granted(
        "oauth2",
        f"{{authority: 'http://127.0.0.1:1', {CLIENT}, client: {{id: c, secret: s}}}}",
        None,
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/communication"},
    ),
    "oauth2-key": granted(
        "oauth2",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: c20, key: {KEY}, authentication: private_key_jwt}}, scopes: [key]}}",
        True,
        SEEN,
        check=asked(client_assertion_type=JWT_BEARER, scope="key"),
    ),
    "oauth2-by-secret": granted("oauth2", "{use: server}", True, SEEN, check=asked(client_id="from-a-secret")),
    # --- oidc
    "oidc-key": granted(
        "oidc",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: o7, key: {KEY}, authentication: private_key_jwt}}, scopes: [key2]}}",
        True,
        SEEN,
        check=asked(client_assertion_type=JWT_BEARER, scope="key2"),
    ),
    "oidc-by-secret": granted(
        "oidc", "{use: server}", True, SEEN, check=asked(client_id="from-a-secret", _path="/realm/own/token")
    ),
    "oidc": granted(
        "oidc",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: o1, secret: s}}}}",
        True,
        SEEN,
        check=asked(client_id="o1", _path="/realm/own/token"),
    ),
    "oidc-password": granted(
        "oidc",
        "{authority: '<http>/realm', grant: password, username: ada, password: pw2, client: {id: o2, secret: s}, scopes: [openid], audiences: [shop]}",
        True,
        SEEN,
        check=asked(client_id="o2", password="pw2", scope="openid", audience="shop"),
    ),
    "oidc-refresh-token": granted(
        "oidc",
        "{authority: '<http>/realm', grant: refresh_token, refresh_token: r2, client: {id: o3, secret: s, authentication: client_secret_post}, request: {encoding: application/json}}",
        True,
        SEEN,
        check=asked(client_id="o3", refresh_token="r2", _type="application/json"),
    ),
    "oidc-token-exchange": granted(
        "oidc",
        "{authority: '<http>/realm', grant: 'urn:ietf:params:oauth:grant-type:token-exchange', client: {id: o4, authentication: none}, subject: {token: sub4, type: 't:s'}, actor: {token: act4, type: 't:a'}}",
        True,
        SEEN,
        check=asked(client_id="o4", subject_token="sub4", actor_token="act4"),
    ),
    "oidc-assertion": granted(
        "oidc",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: o5, assertion: d.e.f, authentication: private_key_jwt}}}}",
        True,
        SEEN,
        check=asked(client_assertion="d.e.f"),
    ),
    "oidc-issuers-refuse": granted(
        "oidc",
        f"{{authority: '<http>/realm', {CLIENT}, client: {{id: o6, secret: s}}, issuers: ['https://other.test']}}",
        None,
        error={"type": AUTHENTICATION},
    ),
    "oidc-not-found": granted(
        "oidc", f"{{authority: '<http>/nowhere', {CLIENT}, client: {{id: o, secret: s}}}}", None, error={"status": 404}
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "signin")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])

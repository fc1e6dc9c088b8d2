"""Texts from elsewhere: functions of catalogs, functions by address, schemas. Named policies and URI templates."""

from __future__ import annotations

import pytest

from flint_core.definition import DefinitionLimits, Severity, compile_definition
from flint_core.effects import Deferred
from flint_core.machine import Machine
from support.machines import FACTS, HEAD, Driver

LOG = b"""
input: {schema: {document: {type: object, required: [message]}}}
do:
  - write: {call: noop, with: {output: 'log: ${ .message }'}}
"""
USE = "use: {catalogs: {tools: {endpoint: 'https://tools.example/catalog/'}}}\n"
CALL = USE + "do: [{t: {call: 'log:1.2.0@tools', with: {message: hi}}}]\n"
URI = "https://tools.example/catalog/functions/log/1.2.0/function.yaml"


def errors(body, resources=None, limits=None):
    compiled = compile_definition(HEAD + body, limits, resources)
    assert compiled.program is None
    return [finding for finding in compiled.findings if finding.severity is Severity.ERROR]


def output(program, data=None):
    return Driver(Machine.start(program, FACTS, data or {}, 1_000)).run().output


def test_a_function_of_a_catalog_is_needed_then_pinned():
    first = compile_definition(HEAD + CALL)
    assert (first.program, first.findings) == (None, [])
    assert [(need.uri, need.authentication, need.pointer) for need in first.needs] == [(URI, None, "/do/0/t/call")]
    second = compile_definition(HEAD + CALL, resources={URI: LOG})
    assert second.needs == () and second.findings == []
    assert output(second.program) == "log: hi"
    other = compile_definition(HEAD + CALL, resources={URI: LOG.replace(b"log:", b"LOG:")})
    assert other.program.hash != second.program.hash
    assert compile_definition(HEAD + CALL, resources={URI: LOG}).program.hash == second.program.hash


def test_a_file_may_name_its_function_and_need_further_files():
    uri = "https://x.example/f.yaml"
    body = USE + f"do: [{{t: {{call: '{uri}'}}}}]\n"
    files = {uri: b"wrapped: {do: [{a: {call: 'log:1.2.0@tools', with: {message: from afar}}}]}\n"}
    assert [need.uri for need in compile_definition(HEAD + body, resources=files).needs] == [URI]
    assert output(compile_definition(HEAD + body, resources={**files, URI: LOG}).program) == "log: from afar"


@pytest.mark.parametrize(
    ("endpoint", "uri"),
    [
        ("https://github.com/me/tools", "https://raw.githubusercontent.com/me/tools/main"),
        ("https://github.com/me/tools/tree/v1/sub", "https://raw.githubusercontent.com/me/tools/v1/sub"),
        ("file:///srv/catalog", "file:///srv/catalog"),
    ],
)
def test_where_the_files_of_a_catalog_are(endpoint, uri):
    body = f"use: {{catalogs: {{c: {{endpoint: {{uri: '{endpoint}'}}}}}}}}\ndo: [{{t: {{call: 'f:0.1.0@c'}}}}]\n"
    assert [need.uri for need in compile_definition(HEAD + body).needs] == [f"{uri}/functions/f/0.1.0/function.yaml"]


def test_a_catalog_with_constant_authentication():
    body = (
        "use:\n  authentications: {a: {basic: {username: u, password: p}}}\n"
        "  catalogs: {c: {endpoint: {uri: 'https://x.example', authentication: {use: a}}}}\n"
        "do: [{t: {call: 'f:0.1.0@c'}}]\n"
    )
    (need,) = compile_definition(HEAD + body).needs
    assert need.authentication == {"basic": {"username": "u", "password": "p"}}


def test_the_default_catalog_is_the_runtimes_own():
    program = compile_definition(HEAD + "do: [{t: {call: 'noop:1.0.0@default', with: {output: 5}}}]\n").program
    assert program.tasks[1].function == "noop" and output(program) == 5


def test_circles_and_mistakes_in_files_are_told_at_the_call():
    (found,) = errors(CALL, {URI: b"call: 'log:1.2.0@tools'\n"})
    assert found.message.endswith("in a circle: log:1.2.0@tools → log:1.2.0@tools") and found.line == 3
    (found,) = errors(CALL, {URI: b"do:\n  - a: {sett: {x: 1}}\n"})
    assert found.message.startswith(f"in {URI}, line 2, column 8: the task 'a' has no kind; did you mean 'set'?")
    assert (found.line, found.column, found.pointer) == (3, 17, "/do/0/t/call")
    (found,) = errors(CALL, {URI: b"do: ["})
    assert found.rule == "yaml" and URI in found.message
    (found,) = errors(CALL, {URI: b"set: " + b"[" * 500 + b"]" * 500})
    assert found.rule == "limit"


MISTAKES = {
    "catalog": (CALL.replace("@tools", "@tool"), "did you mean 'tools'"),
    "form": (CALL.replace("log:1.2.0@tools", "log@tools"), "name:version@catalog"),
    "version": (CALL.replace("1.2.0", "1.2"), "name:version@catalog"),
    "default": ("do: [{t: {call: 'htp:1.0.0@default'}}]\n", "did you mean 'http'"),
    "default version": ("do: [{t: {call: 'http:2.0.0@default'}}]\n", "1.0.0 alone"),
    "own default": (
        "use: {catalogs: {default: {endpoint: 'https://x.example'}}}\ndo: [{t: {call: noop}}]\n",
        "the runtime's own",
    ),
    "no endpoint": ("use: {catalogs: {c: {}}}\ndo: [{t: {call: noop}}]\n", "needs 'endpoint'"),
    "expression": (CALL.replace("https://tools.example/catalog/", "https://${ .x }"), "read at apply"),
    "scheme": (CALL.replace("https://tools", "ftp://tools"), "http, https or file"),
    "secret": (
        "use: {secrets: [s], catalogs: {c: {endpoint: {uri: 'https://x.example',"
        " authentication: {bearer: {token: '${ $secrets.s }'}}}}}}\ndo: [{t: {call: 'f:1.0.0@c'}}]\n",
        "give constant values",
    ),
    "oauth2": (
        "use: {catalogs: {c: {endpoint: {uri: 'https://x.example',"
        " authentication: {oauth2: {authority: 'https://a'}}}}}}\n"
        "do: [{t: {call: 'f:1.0.0@c'}}]\n",
        "use basic",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    body, words = MISTAKES[what]
    found = errors(body)
    assert words in found[0].message, found


def test_a_definition_reads_a_bounded_number_of_texts():
    body = "do:\n" + "".join(f"  - t{n}: {{call: 'https://x.example/{n}'}}\n" for n in range(5))
    (found,) = errors(body, limits=DefinitionLimits(resources=4))
    assert found.rule == "limit" and found.line == 7


def test_a_schema_from_elsewhere():
    body = "input: {schema: {resource: {name: n, endpoint: {uri: 'https://x.example/s.json'}}}}\n"
    body += "do: [{t: {call: noop}}]\n"
    (need,) = compile_definition(HEAD + body).needs
    assert (need.uri, need.pointer) == ("https://x.example/s.json", "/input/schema/resource")
    program = compile_definition(HEAD + body, resources={need.uri: b'{"type": "object"}'}).program
    assert program.tasks[0].input_schema == {"type": "object"}
    assert "JSON schema" in errors(body, {need.uri: b"{type: objekt}"})[0].message
    assert "JSON schema" in errors(body, {need.uri: b"- 1"})[0].message
    assert errors(body, {need.uri: b"{"})[0].rule == "yaml"
    both = body.replace("{resource:", "{document: {type: array}, resource:")
    assert compile_definition(HEAD + both).program.tasks[0].input_schema == {"type": "array"}


# --- policies and templates


def http(endpoint, use=""):
    return f"{use}timeout: {{after: PT1H}}\ndo: [{{t: {{call: http, with: {{method: get, endpoint: {endpoint}}}}}}}]\n"


POLICIES = (
    "use:\n  secrets: [my-login, token]\n  authentications:\n"
    "    login: {basic: {use: my-login}}\n"
    "    bearer: {bearer: {token: '${ $secrets.token }'}}\n"
    "    server: {oauth2: {authority: 'https://a.example', grant: client_credentials,"
    " client: {id: i, secret: '${ $secrets.token }'}}}\n"
)


@pytest.mark.parametrize(
    ("authentication", "policy"),
    [
        ("{use: login}", {"basic": '${ $secrets["my-login"] }'}),
        ("login", {"basic": '${ $secrets["my-login"] }'}),
        ("{digest: {use: token}}", {"digest": '${ $secrets["token"] }'}),
        ("{use: bearer}", {"bearer": {"token": "${ $secrets.token }"}}),
        ("{basic: {username: u, password: p}}", {"basic": {"username": "u", "password": "p"}}),
    ],
)
def test_a_policy_stands_inline_in_the_program_with_secrets_deferred(authentication, policy):
    body = http(f"{{uri: 'https://x.example', authentication: {authentication}}}", POLICIES)
    compiled = compile_definition(HEAD + body)
    assert [finding for finding in compiled.findings if finding.rule != "unused"] == []
    assert compiled.program.tasks[1].arguments["endpoint"]["authentication"] == policy
    driver = Driver(Machine.start(compiled.program, FACTS, {}, 1_000))
    driver.settle()
    (value,) = driver.calls[0].arguments["endpoint"]["authentication"].values()
    deferred = value if isinstance(value, Deferred) else value.get("token")
    if "username" not in str(policy):
        assert isinstance(deferred, Deferred) and deferred.secrets[0] in ("my-login", "token")


def test_policies_work_wherever_a_function_takes_one():
    body = (
        POLICIES + "timeout: {after: PT1H}\n"
        "do: [{t: {call: grpc, with: {proto: {endpoint: {uri: 'https://x.example/a.proto',"
        " authentication: login}}, service: {name: S, host: h, authentication: {use: bearer}}, method: M}}}]\n"
    )
    arguments = compile_definition(HEAD + body).program.tasks[1].arguments
    assert arguments["proto"]["endpoint"]["authentication"] == {"basic": '${ $secrets["my-login"] }'}
    assert arguments["service"]["authentication"] == {"bearer": {"token": "${ $secrets.token }"}}


POLICY_MISTAKES = {
    "name": ("{uri: 'https://x', authentication: {use: logon}}", "did you mean 'login'"),
    "bare name": ("{uri: 'https://x', authentication: logon}", "did you mean 'login'"),
    "secret": ("{uri: 'https://x', authentication: {basic: {use: my-logon}}}", "did you mean 'my-login'"),
    "both": ("{uri: 'https://x', authentication: {use: login, basic: {use: token}}}", "named or written, not both"),
    "certificate": ("{uri: 'https://x', authentication: {certificate: {}}}", "says nothing about it"),
    "kind": ("{uri: 'https://x', authentication: 5}", "a policy or the name of one"),
    "member": ("{uri: 'https://x', authentication: {basic: {user: u, password: p}}}", "arguments of 'http'"),
}


@pytest.mark.parametrize("what", POLICY_MISTAKES)
def test_mistakes_in_policies(what):
    endpoint, words = POLICY_MISTAKES[what]
    found = errors(http(endpoint, POLICIES))
    assert words in found[0].message and found[0].line == 9, found


def test_an_unused_policy_is_checked_where_it_stands():
    use = "use:\n  authentications:\n    a: {basic: {username: u}}\n    b: {use: a}\n"
    use += "    c: {bearer: {token: '${ $x }'}}\n"
    found = errors(http("'https://x.example'", use))
    assert [finding.line for finding in found] == [4, 5, 6]
    assert "the policy 'a'" in found[0].message and "cannot name another one" in found[1].message


def test_a_uri_template_takes_members_of_the_input():
    arguments = compile_definition(HEAD + http("'https://x.example/pet/{petId}{?a,b*}'")).program.tasks[1].arguments
    assert arguments["endpoint"] == {
        "uri": "https://x.example/pet/{petId}{?a,b*}",
        "variables": {"petId": '${ .["petId"] }', "a": '${ .["a"] }', "b": '${ .["b"] }'},
    }
    given = compile_definition(HEAD + http("{uri: 'https://x.example/{a}', variables: {a: 5}}")).program
    assert given.tasks[1].arguments["endpoint"]["variables"] == {"a": 5}
    mixed = compile_definition(HEAD + http("'https://x.example/${ .a }'")).program
    assert mixed.tasks[1].arguments["endpoint"] == "https://x.example/${ .a }"

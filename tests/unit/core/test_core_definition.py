"""Reading and compiling definitions: what is refused, where, and how it is said."""

import orjson
import pytest

from flint_core.definition import DefinitionLimits, Severity, compile_definition
from flint_core.program import Program, ProgramError
from flint_store.errors import VersionInvalid
from flint_store.version_order import version_sort

HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"


def only(source, rule, limits=None):
    compiled = compile_definition(source, limits)
    assert compiled.program is None
    errors = [finding for finding in compiled.findings if finding.severity is Severity.ERROR]
    assert [finding.rule for finding in errors] == [rule], errors
    return errors[0]


UNSUPPORTED = {
    "evaluate": ("evaluate: {language: js}\ndo: [{t: {call: noop}}]\n", 2, 12),
    "evaluate loosely": ("evaluate: {mode: loose}\ndo: [{t: {call: noop}}]\n", 2, 12),
    "schema format": ("input: {schema: {format: avro, document: {}}}\ndo: [{t: {call: noop}}]\n", 2, 18),
    **{
        f"hint {hint}": (f"do:\n  - t: {{call: noop, metadata: {{flint: {{{hint}: x}}}}}}\n", 3, 40)
        for hint in ("residency",)
    },
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_is_not_built_is_refused_with_its_place_and_a_hint(what):
    body, line, column = UNSUPPORTED[what]
    finding = only(HEAD + body, "unsupported")
    assert (finding.line, finding.column) == (line, column)
    assert "is not supported by this version of Flint: " in finding.message


def test_a_newer_dsl_is_refused():
    source = "document: {dsl: 2.0.0, namespace: default, name: demo, version: 1.0.0}\ndo: [{t: {call: noop}}]"
    assert only(source, "unsupported").column == 12


DO = "do: [{t: {call: noop}}]\n"
MISTAKES = {
    "not an object": ("- 1\n", "wrong-type", 1, 1, "must be an object"),
    "no do": (HEAD, "missing-field", 1, 1, "'do'"),
    "empty": ("", "yaml", 1, 1, "empty"),
    "unknown top": (HEAD + DO + "timeouts: 1\n", "unknown-field", 3, 1, "did you mean 'timeout'"),
    "version": (HEAD.replace("1.0.0}", "1.0}") + DO, "wrong-type", 1, 65, "must be text"),
    "semver": (HEAD.replace("1.0.0}", "v1}") + DO, "invalid-value", 1, 65, "semantic version"),
    "name": (HEAD.replace("demo", "My_Flow") + DO, "invalid-value", 1, 50, "lower-case"),
    "hint": (HEAD.replace("1.0.0}", "1.0.0, metadata: {flint: {lvel: 1}}}") + DO, "unknown-field", 1, 91, "'level'"),
    "kind": (HEAD + "do:\n  - t:\n      cal: http\n", "missing-field", 4, 7, "did you mean 'call'"),
    "two kinds": (HEAD + "do:\n  - t: {set: {x: 1}, call: noop}\n", "invalid-value", 3, 9, "call and set"),
    "empty list": (HEAD + "do: []\n", "wrong-type", 2, 5, "list of named tasks"),
    "two names": (HEAD + "do:\n  - {a: {call: noop}, b: {call: noop}}\n", "wrong-type", 3, 5, "one member"),
    "same name": (HEAD + "do:\n  - a: {call: noop}\n  - a: {call: noop}\n", "duplicate-key", 4, 5, "'a'"),
    "reserved": (HEAD + "do:\n  - end: {call: noop}\n", "invalid-value", 3, 5, "flow directive"),
    "task field": (HEAD + "do:\n  - t: {call: noop, timout: {after: PT1S}}\n", "unknown-field", 3, 21, "'timeout'"),
    "then": (HEAD + "do:\n  - aa: {call: noop, then: bb}\n  - bbb: {call: noop}\n", "reference", 3, 28, "'bbb'"),
    "then in a branch": (
        HEAD + "do: [{f: {fork: {branches: [{a: {call: noop, then: b}}, {b: {call: noop}}]}}}]",
        "reference",
        2,
        52,
        "side by side",
    ),
    "function": (HEAD + "do:\n  - t: {call: htp}\n", "reference", 3, 15, "did you mean 'http'"),
    "arguments": (
        HEAD
        + "do:\n  - t:\n      timeout: {after: PT1S}\n      call: http\n      with: {method: 5, endpoint: 'http://x'}\n",
        "arguments",
        6,
        22,
        "arguments of 'http'",
    ),
    "argument misspelled": (
        HEAD + "do: [{t: {timeout: {after: PT1S}, call: sql, with: {connection: c, qery: select 1, query: select 1}}}]",
        "arguments",
        2,
        68,
        "'qery' is not known here; did you mean 'query'?",
    ),
    "argument deep": (
        HEAD
        + "do:\n  - t:\n      timeout: {after: PT1S}\n      call: http\n      with:\n        method: get\n"
        + "        endpoint: {uri: 'http://x', authentication: {basic: {usrname: a, username: a, password: b}}}\n",
        "arguments",
        8,
        62,
        "did you mean 'username'?",
    ),
    "argument's choice": (
        HEAD
        + "do: [{t: {timeout: {after: PT1S}, call: http, with: {method: get, endpoint: 'http://x', output: respons}}}]",
        "arguments",
        2,
        97,
        "'respons' is none of content, response, raw; did you mean 'response'?",
    ),
    "no way": (
        HEAD + "do: [{t: {timeout: {after: PT1S}, call: sql, with: {connection: c}}}]",
        "arguments",
        2,
        52,
        "one of query, execute, batch, transaction is required",
    ),
    "two ways": (
        HEAD + "do: [{t: {timeout: {after: PT1S}, call: sql, with: {connection: c, query: a, execute: b}}}]",
        "arguments",
        2,
        78,
        "query and execute do not go together",
    ),
    "variable misspelled": (
        HEAD + "do:\n  - t: {set: {x: '${ $inptu.a }'}}\n",
        "expression",
        3,
        18,
        "did you mean $input?",
    ),
    "unit": (HEAD + "do:\n  - t: {wait: {second: 5}}\n", "invalid-value", 3, 15, "did you mean 'seconds'?"),
    "undefined": (HEAD + "do:\n  - t: {set: {x: '${ $nope }'}}\n", "expression", 3, 18, "$nope is not defined here"),
    "unclosed": (HEAD + "do:\n  - t: {set: {x: '${ .a '}}\n", "expression", 3, 18, "expression"),
    "if sees no input": (HEAD + "do:\n  - t: {if: $input.x, call: noop}\n", "expression", 3, 13, "$input"),
    "loop variable outside": (
        HEAD + "do:\n  - f: {for: {in: .l}, do: [{a: {call: noop}}], output: {as: $item}}\n",
        "expression",
        3,
        62,
        "$item",
    ),
    "reserved variable": (
        HEAD + "do:\n  - f: {for: {each: steps, in: .l}, do: [{a: {call: noop}}]}\n",
        "invalid-value",
        3,
        21,
        "$steps",
    ),
    "steps": (HEAD + "do:\n  - aaa: {set: {x: '${ $steps.aab }'}}\n", "reference", 3, 20, "did you mean 'aaa'"),
    "unclear steps": (
        HEAD
        + "do:\n  - p: {do: [{x: {call: noop}}]}\n  - q: {do: [{x: {call: noop}}]}\n"
        + "  - r: {set: {v: '${ $steps.x }'}}\n",
        "reference",
        5,
        18,
        "several tasks",
    ),
    "secret in set": (
        HEAD + "use: {secrets: [k]}\ndo:\n  - t: {set: {x: '${ $secrets.k }'}}\n",
        "secret",
        4,
        18,
        "arguments of calls",
    ),
    "secret in if": (
        HEAD + "use: {secrets: [k]}\ndo:\n  - t: {if: $secrets.k, call: noop}\n",
        "secret",
        4,
        13,
        "arguments of calls",
    ),
    "secret in noop": (
        HEAD + "use: {secrets: [k]}\ndo:\n  - t: {call: noop, with: {output: {a: 'x ${ $secrets.k }'}}}\n",
        "secret",
        4,
        40,
        "arguments of calls",
    ),
    "secret in a function that is noop": (
        HEAD
        + "use: {secrets: [k], functions: {f: {call: noop, with: {output: '${ $secrets.k }'}}}}\n"
        + "do: [{t: {call: f}}]\n",
        "secret",
        2,
        64,
        "arguments of calls",
    ),
    "long version": (HEAD.replace("1.0.0}", f"1.0.0-{'a' * 59}}}") + DO, "limit", 1, 65, "65 characters"),
    "long title": (HEAD.replace("1.0.0}", f"1.0.0, title: {'t' * 257}}}") + DO, "limit", 1, 79, "the limit is 256"),
    "long summary": (HEAD.replace("1.0.0}", f"1.0.0, summary: {'s' * 4097}}}") + DO, "limit", 1, 81, "is 4096"),
    "undeclared secret": (
        HEAD + "use: {secrets: [key]}\ndo:\n  - t: {call: http, with: {method: get, endpoint: '${ $secrets.kei }'}}\n",
        "secret",
        4,
        51,
        "did you mean 'key'",
    ),
    "any secret": (
        HEAD + "use: {secrets: [key]}\ndo:\n  - t: {call: http, with: {method: get, endpoint: '${ $secrets }'}}\n",
        "secret",
        4,
        51,
        "outright",
    ),
    "duration": (HEAD + "do:\n  - w: {wait: 5 minutes}\n", "invalid-value", 3, 15, "ISO 8601"),
    "duration unit": (HEAD + "do:\n  - w: {wait: {second: 5}}\n", "invalid-value", 3, 15, "'second'"),
    "timeout name": (
        HEAD + "use: {timeouts: {quick: {after: PT1S}}}\ndo:\n  - t: {call: noop, timeout: quik}\n",
        "reference",
        4,
        30,
        "'quick'",
    ),
    "retry name": (
        HEAD + "do:\n  - t: {try: [{a: {call: noop}}], catch: {retry: x}}\n",
        "reference",
        3,
        50,
        "use.retries",
    ),
    "error name": (HEAD + "do:\n  - t: {raise: {error: x}}\n", "reference", 3, 24, "use.errors"),
    "error without status": (HEAD + "do:\n  - t: {raise: {error: {type: x}}}\n", "missing-field", 3, 24, "'status'"),
    "unused error": (HEAD + "use: {errors: {e: {type: x}}}\n" + DO, "missing-field", 2, 19, "'status'"),
    "no catch": (HEAD + "do:\n  - t: {try: [{a: {call: noop}}]}\n", "missing-field", 3, 8, "'catch'"),
    "backoff": (
        HEAD + "do:\n  - t: {try: [{a: {call: noop}}], catch: {retry: {backoff: {expo: {}}}}}\n",
        "unknown-field",
        3,
        61,
        "'exponential'",
    ),
    "schema": (HEAD + "input: {schema: {document: {type: objekt}}}\n" + DO, "schema", 2, 28, "JSON schema"),
    "schema elsewhere": (
        HEAD + "input: {schema: {document: {$ref: 'https://example.com/x.json'}}}\n" + DO,
        "schema",
        2,
        28,
        "JSON schema",
    ),
    "two defaults": (
        HEAD + "do:\n  - s: {switch: [{a: {then: end}}, {b: {then: exit}}]}\n",
        "invalid-value",
        3,
        37,
        "only one can be the default",
    ),
    "switch without then": (HEAD + "do:\n  - s: {switch: [{a: {when: .x}}]}\n", "missing-field", 3, 22, "'then'"),
    "duplicate key": (HEAD + "do:\n  - t: {call: noop, call: http}\n", "duplicate-key", 3, 21, "twice"),
    "number as key": (HEAD + "do:\n  - t: {set: {1: x}}\n", "yaml", 3, 15, "must be text"),
    "large integer": (HEAD + "do:\n  - t: {set: {x: 99999999999999999999}}\n", "invalid-value", 3, 18, "64 bits"),
    "infinity": (HEAD + "do:\n  - t: {set: {x: .inf}}\n", "invalid-value", 3, 18, "not JSON"),
    "two documents": (HEAD + DO + "---\na: 1\n", "yaml", 3, 1, "one YAML document"),
    "bad yaml": (HEAD + "do: [\n", "yaml", 3, 1, "well-formed"),
    "tag": (HEAD + "do:\n  - t: {set: {x: !!python/name:os.system ''}}\n", "yaml", 3, 18, "tag"),
    "alias to itself": (HEAD + "do: &a [*a]\n", "yaml", 2, 9, "finished anchor"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_found_where_it_stands(what):
    source, rule, line, column, words = MISTAKES[what]
    compiled = compile_definition(source)
    errors = [finding for finding in compiled.findings if finding.severity is Severity.ERROR]
    assert compiled.program is None
    assert errors and errors[0].rule == rule, errors
    assert words in errors[0].message
    assert (errors[0].line, errors[0].column) == (line, column), errors[0]


def test_all_mistakes_are_told_at_once():
    source = HEAD + "do:\n  - a: {call: htp}\n  - b: {wait: soon}\n  - c: {set: {x: '${ $no }'}}\n"
    assert [finding.line for finding in compile_definition(source).findings] == [3, 4, 5]


def test_bounds_on_size_depth_and_aliases():
    assert "bytes" in only(HEAD + DO, "limit", DefinitionLimits(definition_bytes=40)).message
    assert "deeper" in only(HEAD + "do: " + "[" * 100_000, "limit").message
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "aliases" in only(bomb, "limit").message
    stairs = "a: &a0 [x]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}]\n" for n in range(100))
    assert "deeper" in only(stairs, "limit").message
    many = HEAD + "do:\n" + "".join(f"  - t{n}: {{call: noop}}\n" for n in range(30))
    assert "30 tasks" not in only(many, "limit", DefinitionLimits(tasks=20)).message


def test_yaml_1_2_and_json_are_read_alike():
    yaml = compile_definition(HEAD + "do: [{t: {set: {on: yes, n: 012, d: 2026-01-01, o: 0o17}}}]").program
    assert yaml.tasks[1].value == {"on": "yes", "n": 12, "d": "2026-01-01", "o": 15}
    document = {
        "document": {"dsl": "1.0.3", "namespace": "default", "name": "demo", "version": "1.0.0"},
        "do": [{"t": {"set": {"on": "yes", "n": 12, "d": "2026-01-01", "o": 15}}}],
    }
    json = compile_definition(orjson.dumps(document)).program
    assert json.hash == yaml.hash


def test_a_program_survives_its_encoding_and_keeps_its_hash():
    source = (
        HEAD.replace("1.0.0}", "1.0.0, title: T, summary: S, metadata: {team: x}}")
        + "use: {secrets: [s], retries: {r: {delay: PT1S, backoff: {exponential: {}}}}}\n"
        + "timeout: {after: PT1H}\n"
        + "do:\n"
        + "  - t: {try: [{a: {call: http, with: {method: get, endpoint: 'https://x/${ .id }'}}}],"
        + " catch: {retry: r, do: [{b: {set: {x: 1}, then: end}}]}}\n"
        + "  - s: {switch: [{c: {when: .x, then: t}}]}\n"
    )
    program = compile_definition(source).program
    again = Program.decode(program.encode())
    assert again == program
    assert (again.encode(), again.hash, len(again.hash)) == (program.encode(), program.hash, 32)
    assert (again.title, again.summary, again.workflow_id, again.version) == ("T", "S", "demo", "1.0.0")
    assert program.hash.hex() == compile_definition(source).program.hash.hex()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format":99}', b'{"format":1,"tasks":[{"x":1}]}'])
def test_bytes_that_are_no_program(data):
    with pytest.raises(ProgramError):
        Program.decode(data)


def test_expressions_for_jq_are_listed_with_their_variables():
    program = compile_definition(
        HEAD
        + "use: {secrets: [k]}\n"
        + "do: [{t: {call: http, if: '[limit(1; .a)] == []',"
        + " with: {method: get, endpoint: 'http://x', body: '${ $secrets.k | @base64d | ascii }'}}}]"
    ).program
    sources = program.jq_sources()
    assert ("[limit(1; .a)] == []", "/do/0/t") in [(source, pointer) for source, _, pointer in sources]
    secret = next(variables for source, variables, _ in sources if "secrets" in source)
    assert "secrets" in secret


WARNINGS = {
    "no timeout": ("do:\n  - t: {call: http, with: {method: get, endpoint: 'http://x'}}\n", "no-timeout", 3),
    "after end": ("do:\n  - a: {call: noop, then: end}\n  - b: {call: noop}\n", "unreachable", 4),
    "after raise": ("do:\n  - a: {raise: {error: {type: x, status: 400}}}\n  - b: {call: noop}\n", "unreachable", 4),
    "after a default": (
        "do:\n  - a: {switch: [{x: {then: c}}]}\n  - b: {call: noop}\n  - c: {call: noop}\n",
        "unreachable",
        4,
    ),
}


@pytest.mark.parametrize("what", WARNINGS)
def test_warnings_do_not_refuse(what):
    body, rule, line = WARNINGS[what]
    compiled = compile_definition(HEAD + body)
    assert compiled.program is not None
    assert [(finding.rule, finding.line, finding.severity) for finding in compiled.findings] == [
        (rule, line, Severity.WARNING)
    ]


def test_a_timeout_around_a_call_is_enough():
    call = "{call: http, with: {method: get, endpoint: 'http://x'}}"
    for body in (
        f"timeout: {{after: PT1H}}\ndo: [{{t: {call}}}]",
        f"do: [{{d: {{timeout: {{after: PT1H}}, do: [{{t: {call}}}]}}}}]",
    ):
        assert compile_definition(HEAD + body).findings == []


def test_what_is_not_built_in_the_document_is_refused_with_its_place():
    finding = only(HEAD.replace("1.0.0}", "1.0.0, metadata: {flint: {residency: 2}}}") + DO, "unsupported")
    assert (finding.line, finding.column, finding.pointer) == (1, 91, "/document/metadata/flint/residency")
    assert "is not supported by this version of Flint: " in finding.message


@pytest.mark.parametrize(
    "version",
    [
        *("1.0.0", "0.0.0", "1.2.3-rc.1", "1.2.3-0a.b-c+build.007", "1.2.3+a-b", "1.2.3--", "99999999999.0.0"),
        *("1", "1.0", "01.0.0", "1.0.0-01", "1.0.0-a..b", "1.0.0-", "1.0.0+", "v1.0.0", "1.0.0-é", "1.0.\u0663", ""),
        *(f"1.0.0-{'a' * 58}", f"1.0.0-{'a' * 59}", "1.0.0 "),
    ],
)
def test_versions_are_those_that_the_store_takes(version):
    try:
        version_sort(version)
        stored = True
    except VersionInvalid:
        stored = False
    source = HEAD.replace("version: 1.0.0", f"version: {orjson.dumps(version).decode()}") + DO
    assert (compile_definition(source).program is not None) == stored

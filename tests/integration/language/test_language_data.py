"""Data flow, schemas, expressions and their variables."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import pytest
import pytest_asyncio

from support.house import House
from support.language import ANY, Case, Outcome, check, check_kit, run_cases
from support.language_world import World

VALIDATION = "https://serverlessworkflow.io/spec/1.0.0/errors/validation"
EXPRESSION = "https://serverlessworkflow.io/spec/1.0.0/errors/expression"

CASES = {
    # --- input
    "input-from": Case("do: [{a: {input: {from: .order}, set: {n: '${ .n }'}}}]", {"n": 1}, input={"order": {"n": 1}}),
    "input-from-object": Case(
        "do: [{a: {input: {from: {n: '${ .order.n }'}}, set: {all: '${ . }'}}}]",
        {"all": {"n": 1}},
        input={"order": {"n": 1}},
    ),
    "input-from-of-the-workflow": Case(
        "input: {from: .order}\ndo: [{a: {set: {n: '${ .n }'}}}]", {"n": 1}, input={"order": {"n": 1}}
    ),
    "input-schema": Case(
        "do: [{a: {input: {schema: {format: json, document: {type: object, required: [n]}}}, set: {ok: true}}}]",
        {"ok": True},
        input={"n": 1},
    ),
    "input-schema-refuses": Case(
        "do: [{a: {input: {schema: {document: {type: object, required: [n]}}}, set: {ok: true}}}]",
        error={"type": VALIDATION, "status": 400, "instance": "/do/0/a"},
        input={"m": 1},
    ),
    "input-schema-before-from": Case(
        "do: [{a: {input: {schema: {document: {type: object, required: [order]}}, from: .order}, set: {n: '${ .n }'}}}]",
        {"n": 1},
        input={"order": {"n": 1}},
    ),
    "input-schema-of-the-workflow": Case(
        "input: {schema: {document: {type: object, properties: {n: {type: integer}}}}}\ndo: [{a: {set: {n: '${ .n }'}}}]",
        {"n": 1},
        input={"n": 1},
    ),
    "input-schema-version": Case(
        "do: [{a: {input: {schema: {format: 'json:draft-07', document: {type: object}}}, set: {ok: true}}}]",
        {"ok": True},
        input={},
    ),
    # --- output
    "output-as": Case("do: [{a: {set: {n: 1, m: 2}, output: {as: .m}}}]", 2),
    "output-as-object": Case(
        "do: [{a: {set: {n: 1}, output: {as: {m: '${ .n + 1 }', k: fixed}}}}]", {"k": "fixed", "m": 2}
    ),
    "output-as-sees-the-input": Case(
        "do: [{a: {call: noop, with: {output: 5}, output: {as: '${ {in: $input.n, out: .} }'}}}]",
        {"in": 1, "out": 5},
        input={"n": 1},
    ),
    "output-as-sees-output": Case("do: [{a: {call: noop, with: {output: 5}, output: {as: '${ $output + 1 }'}}}]", 6),
    "output-as-of-the-workflow": Case("do: [{a: {set: {n: 1}}}]\noutput: {as: .n}", 1),
    "output-schema": Case("do: [{a: {set: {n: 1}, output: {schema: {document: {type: object}}}}}]", {"n": 1}),
    "output-schema-refuses": Case(
        "do: [{a: {set: {n: 1}, output: {as: .n, schema: {document: {type: string}}}}}]",
        error={"type": VALIDATION, "status": 400, "instance": "/do/0/a"},
    ),
    "output-schema-of-the-workflow": Case(
        "do: [{a: {set: {n: 1}}}]\noutput: {schema: {document: {type: object}}}", {"n": 1}
    ),
    "output-schema-of-the-workflow-refuses": Case(
        "do: [{a: {set: {n: 1}}}]\noutput: {as: .n, schema: {document: {type: string}}}",
        error={"type": VALIDATION, "status": 400},
    ),
    "output-of-a-skipped-task": Case("do: [{a: {if: false, set: {n: 5}, output: {as: .n}}}]", {"n": 1}, input={"n": 1}),
    # --- export
    "export-as": Case("do: [{a: {set: {n: 1}, export: {as: .n}}}, {b: {set: {seen: '${ $context }'}}}]", {"seen": 1}),
    "export-as-object": Case(
        "do: [{a: {set: {n: 1}, export: {as: {kept: '${ .n }'}}}}, {b: {set: {seen: '${ $context.kept }'}}}]",
        {"seen": 1},
    ),
    "export-merges": Case(
        """
do:
  - a: {set: {n: 1}, export: {as: '$context + .'}}
  - b: {set: {m: 2}, export: {as: '$context + .'}}
  - c: {set: '${ $context }'}
""",
        {"n": 1, "m": 2},
    ),
    "export-after-output": Case(
        "do: [{a: {set: {n: 1}, output: {as: .n}, export: {as: '${ {out: .} }'}}}, {b: {set: '${ $context }'}}]",
        {"out": 1},
    ),
    "export-sees-input-and-output": Case(
        "do: [{a: {call: noop, with: {output: 2}, export: {as: '${ [$input.n, $output] }'}}}, {b: {set: '${ $context }'}}]",
        [1, 2],
        input={"n": 1},
    ),
    "export-schema": Case("do: [{a: {set: {n: 1}, export: {as: .n, schema: {document: {type: integer}}}}}]", {"n": 1}),
    "export-schema-refuses": Case(
        "do: [{a: {set: {n: 1}, export: {as: .n, schema: {document: {type: string}}}}}]",
        error={"type": VALIDATION, "status": 400, "instance": "/do/0/a"},
    ),
    "context-in-the-workflows-output": Case(
        "do: [{a: {set: {n: 1}, export: {as: .n}}}]\noutput: {as: '${ $context }'}", 1
    ),
    # --- variables
    "variable-steps": Case(
        "do: [{a: {set: {n: 1}}}, {b: {set: {m: 2}}}, {c: {set: {sum: '${ $steps.a.n + $steps.b.m }'}}}]", {"sum": 3}
    ),
    "variable-steps-of-a-skipped-task": Case(
        "do: [{a: {if: false, set: {n: 1}}}, {b: {set: {a: '${ $steps.a }'}}}]", {"a": None}
    ),
    "variable-workflow": Case(
        """
do:
  - a:
      set:
        input: ${ $workflow.input.n }
        name: ${ $workflow.definition.document.name }
        id: ${ $workflow.id | length > 10 }
        started: '${ $workflow.startedAt | type }'
""",
        {"input": 1, "name": "data-variable-workflow", "id": True, "started": ANY},
        input={"n": 1},
    ),
    "variable-task": Case(
        """
do:
  - a:
      input: {from: .n}
      set:
        name: ${ $task.name }
        reference: ${ $task.reference }
        input: ${ $task.input }
        definition: ${ $task.definition.set.fixed }
        fixed: 7
        started: '${ $task.startedAt != null }'
""",
        {"name": "a", "reference": "/do/0/a", "input": ANY, "definition": 7, "fixed": 7, "started": True},
        input={"n": {"x": 1}},
    ),
    "variable-task-output": Case("do: [{a: {set: {n: 1}, output: {as: '${ $task.output.n }'}}}]", ANY),
    "variable-runtime": Case(
        "do: [{a: {set: {name: '${ $runtime.name }', version: '${ $runtime.version | type }', metadata: '${ $runtime.metadata | type }'}}}]",
        {"name": "Flint", "version": "string", "metadata": "object"},
    ),
    "variable-input": Case(
        "do: [{a: {input: {from: .order}, set: {n: '${ $input.n }'}}}]", {"n": 1}, input={"order": {"n": 1}}
    ),
    "variable-now": Case("do: [{a: {set: {t: '${ now > 1000000000 }'}}}]", {"t": True}),
    # --- expressions
    "expression-interpolates": Case(
        "do: [{a: {set: {text: 'n=${ .n } l=${ .l } s=${ .s } z=${ null }'}}}]",
        {"text": "n=1 l=[1,2] s=x z=null"},
        input={"n": 1, "l": [1, 2], "s": "x"},
    ),
    "expression-keeps-the-value": Case(
        "do: [{a: {set: {v: '${ .v }'}}}]", {"v": {"a": [1, None, True]}}, input={"v": {"a": [1, None, True]}}
    ),
    "expression-no-result-is-null": Case("do: [{a: {set: {v: '${ empty }'}}}]", {"v": None}),
    "expression-two-results": Case(
        "do: [{a: {set: {v: '${ 1, 2 }'}}}]", error={"type": EXPRESSION, "status": 400, "instance": "/do/0/a"}
    ),
    "expression-fails": Case(
        "do: [{a: {set: {v: '${ .a.b }'}}}]", error={"type": EXPRESSION, "status": 400}, input={"a": [1]}
    ),
    "expression-error": Case("do: [{a: {set: {v: '${ error(\"no\") }'}}}]", error={"type": EXPRESSION, "status": 400}),
    "expression-guarded": Case(
        "do: [{a: {set: {v: '${ [.l[] | select(. > 1)] | add }', w: '${ reduce .l[] as $x (0; . + $x) }'}}}]",
        {"v": 5, "w": 6},
        input={"l": [1, 2, 3]},
    ),
    "expression-functions": Case(
        """
do:
  - a:
      set:
        keys: '${ .o | keys }'
        upper: '${ .s | ascii_upcase }'
        test: '${ .s | test("^h") }'
        split: '${ "a,b" | split(",") }'
        date: '${ 0 | todate }'
        json: '${ .o | tojson | fromjson }'
        path: '${ [paths] | length > 0 }'
        group: '${ [{k: 1}, {k: 2}, {k: 1}] | group_by(.k) | map(length) }'
        format: '${ .s | @base64 }'
        alternative: '${ .missing // "none" }'
""",
        {
            "keys": ["x", "y"],
            "upper": "HALLO",
            "test": True,
            "split": ["a", "b"],
            "date": "1970-01-01T00:00:00Z",
            "json": {"x": 1, "y": 2},
            "path": True,
            "group": [2, 1],
            "format": "aGFsbG8=",
            "alternative": "none",
        },
        input={"o": {"y": 2, "x": 1}, "s": "hallo"},
    ),
    "expression-large-integers": Case(
        "do: [{a: {set: {v: '${ .v }'}}}]", {"v": 9007199254740993}, input={"v": 9007199254740993}
    ),
    "evaluate-jq-strict": Case("evaluate: {language: jq, mode: strict}\ndo: [{a: {set: {n: '${ 1 + 1 }'}}}]", {"n": 2}),
    # --- the document
    "document-all-members": Case(
        "do: [{a: {set: {tags: '${ $workflow.definition.document.tags.team }', more: '${ $workflow.definition.document.metadata.more }'}}}]",
        {"tags": "shop", "more": [1]},
        head="title: A title, summary: '**Summary**', tags: {team: shop}, metadata: {more: [1], flint: {timezone: Europe/Berlin}}",
    ),
    "metadata-of-a-task": Case(
        "do: [{a: {set: {n: '${ $task.definition.metadata.note }'}, metadata: {note: here}}}]", {"n": "here"}
    ),
    # --- values
    "values-unicode": Case("do: [{a: {set: {v: '${ .v + \"ß\" }'}}}]", {"v": "日本 🦊ß"}, input={"v": "日本 🦊"}),
    "values-yaml": Case(
        "do: [{a: {set: {on: yes, octal: 012, float: 1.5, text: '1', none: ~, date: 2024-01-01}}}]",
        {"on": "yes", "octal": 12, "float": 1.5, "text": "1", "none": None, "date": "2024-01-01"},
    ),
    "values-anchors": Case("do: [{a: {set: {x: &x {n: 1}, y: *x}}}]", {"x": {"n": 1}, "y": {"n": 1}}),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "data")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"data-{name}")

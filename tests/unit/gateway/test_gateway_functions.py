"""What function workers may declare and say, without a stream: schemas, tokens, values."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.problems import ProblemType
from flint_gateway.functions_schemas import SchemaRefused, check_declarations, compile_schema, first_fault
from flint_gateway.functions_session import CREDIT, Session
from flint_gateway.functions_tokens import decode_token, encode_token
from flint_gateway.functions_values import failure_outcome, result_outcome
from flint_rpc.errors import Refused


def declaration(name: str = "a/b", version: str = "1.0.0", **more: bytes) -> pb.FunctionDeclaration:
    return pb.FunctionDeclaration(name=name, version=version, **more)  # type: ignore[arg-type]


def test_every_fault_of_a_hello_is_named() -> None:
    wrong = [
        declaration("resize"),
        declaration(version="1"),
        declaration(input_schema=b"{"),
        declaration("a/c", output_schema=b'{"type": "nothing"}'),
        declaration("a/d"),
        declaration("a/d"),
    ]
    wrong[4].heartbeat_timeout.FromMilliseconds(10)
    with pytest.raises(Refused) as caught:
        check_declarations(wrong)
    fields = {violation.field for violation in caught.value.field_violations}
    assert fields == {
        "hello.functions[0].name",
        "hello.functions[1].version",
        "hello.functions[2].input_schema",
        "hello.functions[3].output_schema",
        "hello.functions[4].heartbeat_timeout",
        "hello.functions[5]",
    }
    with pytest.raises(Refused):
        check_declarations([])


@pytest.mark.parametrize(
    "schema", [b'{"$ref": "http://127.0.0.1:1/s"}', b'{"$ref": "file:///etc/passwd"}', b"[1]", b" " * 70_000]
)
def test_a_schema_reaches_out_for_nothing(schema: bytes) -> None:
    with pytest.raises(SchemaRefused):
        compile_schema(schema)


def test_a_hostile_pattern_takes_no_time() -> None:
    validator = compile_schema(b'{"pattern": "^(a+)+$"}')
    began = time.perf_counter()
    assert first_fault(validator, "a" * 5_000 + "!")
    assert time.perf_counter() - began < 1


def test_faults_repeat_no_value() -> None:
    validator = compile_schema(b'{"properties": {"a": {"properties": {"b": {"type": "integer"}}}}}')
    fault = first_fault(validator, {"a": {"b": "s3cr3t"}})
    assert fault.startswith("/a/b: ")
    assert "s3cr3t" not in fault
    assert first_fault(validator, {"a": {"b": 5}}) == ""


def test_tokens_come_back_and_nothing_else_does() -> None:
    token = dispatch.FunctionToken(caller="0" * 32, call=b"c" * 16, dispatch=3, function="a/" + "b" * 126, version="1")
    assert decode_token(encode_token(token)) == token
    for wrong in ("", "x", "é", "A" * 600, encode_token(dispatch.FunctionToken(caller="*.>", call=b"c" * 16))):
        assert decode_token(wrong) is None


def test_results_are_outcomes_or_typed_failures() -> None:
    declared = check_declarations([declaration(output_schema=b'{"type": "integer"}')])["a/b", "1.0.0"]
    assert result_outcome(declared, pb.Complete(output=b"5"), 10).complete.output == b"5"
    assert result_outcome(None, pb.Complete(), 10).complete.output == b"null"
    for output, kind in (
        (b"x", ProblemType.VALIDATION),
        (b'"x"', ProblemType.VALIDATION),
        (b"1" * 11, ProblemType.PAYLOAD_TOO_LARGE),
    ):
        assert result_outcome(declared, pb.Complete(output=output), 10).fail.problem.type == kind


def test_failures_are_completed_and_bounded() -> None:
    failure = failure_outcome(pb.Fail(retryable=True)).fail
    assert (failure.problem.type, failure.problem.status) == (ProblemType.RUNTIME, 503)
    assert failure_outcome(pb.Fail()).fail.problem.status == 422
    long = pb.Fail(problem=runs_pb2.Problem(type="t" * 5000, title="t" * 5000, detail="d" * 9000, status=418))
    long.retry_after.FromMilliseconds(10**12)
    kept = failure_outcome(long).fail
    assert (len(kept.problem.type), len(kept.problem.title), len(kept.problem.detail)) == (1024, 1024, 4096)
    assert kept.problem.status == 418
    assert kept.retry_after.ToMilliseconds() == 24 * 3_600_000


async def test_a_session_has_bounded_credit_and_ends_after_what_is_queued() -> None:
    session = Session("default", "w", check_declarations([declaration()]))
    session.add_credit(CREDIT * 3)
    assert session.room == CREDIT
    session.draining = True
    assert session.room == 0
    session.send(pb.ConnectResponse(drain=pb.Drain()))
    session.finish()
    assert (await session.next()) == pb.ConnectResponse(drain=pb.Drain())
    assert await asyncio.wait_for(session.next(), 1) is None


def test_a_schema_whose_references_multiply_is_refused():
    chain = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(30)}
    with pytest.raises(SchemaRefused, match="multiply"):
        compile_schema(orjson.dumps({"$ref": "#/$defs/a0", "$defs": {**chain, "a30": {}}}))

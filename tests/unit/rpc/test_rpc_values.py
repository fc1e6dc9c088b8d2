"""Names, pages, keys, traces, statuses: the parts without a wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2

from flint_core.ids import make_run_id
from flint_rpc import api_keys
from flint_rpc.errors import (
    ErrorReason,
    FieldViolation,
    Refused,
    component_unavailable,
    field_invalid,
    from_status_proto,
    status_proto,
)
from flint_rpc.names import format_run, parse_key, parse_parent, parse_run, parse_worker, parse_workflow
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.tracing import new_trace_id, new_trace_ids, trace_id_of

RUN_ID = make_run_id(7, 1_700_000_000_000, bytes(range(9)))


def test_run_names_round_trip_and_are_canonical() -> None:
    name = format_run("default", RUN_ID)
    assert parse_run(name) == (name, "default", RUN_ID)
    uuid = name.rpartition("/")[2]
    assert parse_run(f"namespaces/default/runs/{uuid.upper()}").name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "namespaces/default/runs/1",
        "namespaces/Default/runs/01890a5d-ac96-774b-bcce-b302099a8057",
        "namespaces/default/runs/01890a5d-ac96-474b-bcce-b302099a8057",  # version 4
        "namespaces/default/workflows/x",
        "x" * 10_000,
    ],
)
def test_wrong_run_names_name_the_field(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_run(text)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.field_violations] == ["name"]
    assert len(caught.value.message) < 400


def test_workflow_names() -> None:
    assert parse_workflow("namespaces/a/workflows/b") == ("a", "b", "")
    assert parse_workflow("namespaces/a/workflows/b/versions/1.2.3-rc.1+x") == ("a", "b", "1.2.3-rc.1+x")
    for text, version in [
        ("namespaces/a/workflows/b", True),
        ("namespaces/a/workflows/b/versions/1.0.0", False),
        ("namespaces/a/workflows/b/versions/1.0", None),
        ("namespaces/a/workflows/B", None),
    ]:
        with pytest.raises(Refused):
            parse_workflow(text, version=version)


def test_other_names() -> None:
    assert parse_parent("namespaces/-", allow_all=True) == "-"
    assert parse_key("namespaces/-/keys/abcd12") == ("-", "abcd12")
    assert parse_worker("workers/" + "0f" * 16) == "0f" * 16
    for call in (lambda: parse_parent("namespaces/-"), lambda: parse_key("keys/x"), lambda: parse_worker("workers/x")):
        with pytest.raises(Refused):
            call()


def test_page_sizes() -> None:
    assert [page_size(size, default=50, most=500) for size in (0, 7, 501)] == [50, 7, 500]
    with pytest.raises(Refused) as caught:
        page_size(-1, default=50, most=500)
    assert caught.value.field_violations[0].field == "page_size"


def test_page_tokens_are_bound_to_list_and_filters() -> None:
    binding = PageBinding("runs", "default", "a")
    token = binding.encode("cursor ✓")
    assert binding.decode(token) == "cursor ✓"
    assert binding.decode("") == ""
    for other in (
        PageBinding("runs", "default", "b"),
        PageBinding("keys", "default", "a"),
        PageBinding("runs", "defaulta"),
    ):
        with pytest.raises(Refused) as caught:
            other.decode(token)
        assert caught.value.reason_name == "PAGE_TOKEN_INVALID"
    for forged in ("%%%", "A", "x" * 5000):
        with pytest.raises(Refused):
            binding.decode(forged)


def test_a_refusal_survives_the_wire_form() -> None:
    sent = Refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorReason.ERROR_REASON_QUEUE_FULL,
        "full",
        field_violations=[FieldViolation("a.b", "bad")],
        retry_after_s=1.5,
        metadata={"limit": "3"},
    )
    got = from_status_proto(status_proto(sent))
    assert vars(got) == vars(sent)
    assert status_proto(field_invalid(("x", "y"))).details[0].TypeName() == "google.rpc.ErrorInfo"
    assert component_unavailable("PostgreSQL").retry_after_s == 1.0


def test_foreign_statuses_get_the_nearest_reason() -> None:
    got = from_status_proto(status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="gone"))
    assert got.reason_name == "COMPONENT_UNAVAILABLE"
    assert from_status_proto(status_pb2.Status(code=999)).code is grpc.StatusCode.UNKNOWN


def test_keys_have_one_form_and_hide_their_secret() -> None:
    key = api_keys.generate()
    again = api_keys.parse(key.token)
    assert again == key
    assert len(key.secret_hash) == 32
    assert key.token not in repr(key)
    assert api_keys.generate().token != key.token
    for wrong in ("", "flint_ab_cd", key.token + " ", key.token.replace("flint", "other")):
        assert api_keys.parse(wrong) is None


def test_trace_ids() -> None:
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert trace_id_of([("traceparent", sent)]).hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    fresh = {
        trace_id_of(metadata)
        for metadata in ((), [("traceparent", "junk")], [("traceparent", f"00-{'0' * 32}-{'1' * 16}-01")])
    }
    assert len(fresh) == 3
    assert all(len(value) == 16 and any(value) for value in fresh)
    assert len(new_trace_id()) == 16
    many = new_trace_ids(100)
    assert len(set(many)) == 100
    assert {len(trace_id) for trace_id in many} == {16}
    assert new_trace_ids(0) == []

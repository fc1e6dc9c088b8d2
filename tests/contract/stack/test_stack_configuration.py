"""Settings in force: what is generated, what the user may say, who gets which secret; and ports."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_ops.config import Arguments, load
from flint_stack.configuration import Configuration, child_environment
from flint_stack.errors import ConfigurationInvalid, PortTaken, StackError
from flint_stack.layout import Layout
from flint_stack.ports import Counts, Ports, check_free
from flint_stack.services import ServicePlan
from flint_stack.toml import dump_toml

PORTS = Ports.based(7470, Counts())


def build(folder: Path, **more: Any) -> tuple[Layout, Configuration]:
    layout = Layout.at(folder / "flint")
    layout.make()
    return layout, Configuration.build(layout, PORTS, layout.load_secrets(), **{"environ": {}} | more)


def test_the_default_ports() -> None:
    assert (PORTS.gateway, PORTS.schedulers, PORTS.registries) == (7470, (7471, 7472), (7473, 7474))
    assert (PORTS.postgres, PORTS.nats, PORTS.etcd, PORTS.etcd_peer, PORTS.nats_monitor) == (
        7475,
        7476,
        7477,
        7478,
        7479,
    )
    assert (PORTS.gateway_ops, PORTS.scheduler_ops) == (7480, (7481, 7482))
    assert (PORTS.registry_ops, PORTS.worker_ops) == ((7483, 7484), (7485, 7486))


@pytest.mark.parametrize("counts", [Counts(), Counts(5, 4, 30)])
def test_no_port_is_given_twice(counts: Counts) -> None:
    for ports in (Ports.based(7470, counts), Ports.free(counts)):
        flat = [
            port
            for name in Ports.__dataclass_fields__
            for port in (lambda value: value if isinstance(value, tuple) else (value,))(getattr(ports, name))
        ]
        assert len(flat) == len(set(flat)) == 7 + 2 * counts.schedulers + 2 * counts.registries + counts.workers


def test_a_taken_port_is_told_with_its_purpose_and_its_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken) as refusal:
            check_free([("NATS", port)])
    assert f"{port} (NATS)" in str(refusal.value)
    assert f"process {os.getpid()}" in str(refusal.value)
    check_free([("NATS", port)])


def test_secrets_and_key_are_made_once(tmp_path: Path) -> None:
    layout, first = build(tmp_path)
    _, second = build(tmp_path)
    assert first == second
    assert layout.load_admin_key() == layout.load_admin_key()
    assert first.settings.postgres.dsn.get_secret_value() not in repr(layout.load_secrets())


def test_lost_secrets_of_an_existing_database_are_told(tmp_path: Path) -> None:
    layout, _ = build(tmp_path)
    (layout.postgres_dir / "data").mkdir(parents=True)
    layout.secrets_file.unlink()
    with pytest.raises(StackError, match="holds a database"):
        layout.load_secrets()


def test_the_users_file_beside_the_directory_wins_over_the_generated_settings(tmp_path: Path) -> None:
    (tmp_path / "flint.toml").write_text('[worker]\nallow_private_addresses = false\n[secrets]\ntoken = "hidden"\n')
    layout, configuration = build(tmp_path, overrides=[{"worker": {"allow_private_addresses": True, "slots": 7}}])
    assert not configuration.settings.worker.allow_private_addresses
    assert configuration.settings.worker.slots == 7
    assert load(Arguments(layout.config_file, ()), environ={}) == configuration.settings


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[worker]\nslots = 1\n[limits]\nbatch_size = 1\n")
    _, configuration = build(
        tmp_path,
        user_file=tmp_path / "own.toml",
        environ={"FLINT_WORKER__SLOTS": "2", "FLINT_LIMITS__BATCH_SIZE": "2"},
        assignments=["limits.batch_size=3"],
    )
    assert (configuration.settings.worker.slots, configuration.settings.limits.batch_size) == (2, 3)
    assert child_environment({"FLINT_WORKER__SLOTS": "2", "FLINT_CONFIG": "x", "FLINT_KEY": "k", "PATH": "p"}) == {
        "FLINT_KEY": "k",
        "PATH": "p",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[worker]\nslot = 3\n", "worker.slot: is not a key of Flint's configuration"),
        ("[worker]\nslots = 0\n", "worker.slots"),
        ("worker\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "flint.toml").write_text(text)
    with pytest.raises(ConfigurationInvalid) as refusal:
        build(tmp_path)
    assert said in str(refusal.value)
    assert str(tmp_path / "flint.toml") in str(refusal.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="does not exist"):
        build(tmp_path, user_file=tmp_path / "absent.toml")


def test_servers_that_the_user_names_are_not_embedded(tmp_path: Path) -> None:
    (tmp_path / "flint.toml").write_text(
        '[postgres]\ndsn = "postgresql://me:secret@db.example/flint"\n[nats]\nurls = ["nats://nats.example:4222"]\n'
    )
    _, configuration = build(tmp_path)
    assert not configuration.embedded_postgres
    assert not configuration.embedded_nats
    assert configuration.embedded_etcd


def test_each_process_gets_what_its_role_needs_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "flint.toml").write_text('[secrets]\ntoken = "hidden"\n')
    layout, configuration = build(tmp_path)
    secrets = layout.load_secrets()
    plan = ServicePlan(layout, configuration.settings, PORTS, secrets)
    files = {}
    for spec in plan.all(Counts()):
        assert spec.argv[1:3] == ("-m", f"flint_{spec.name.rstrip('-12')}")
        files[spec.name] = Path(spec.argv[-1]).read_text()
        assert Path(spec.argv[-1]).stat().st_mode & 0o777 == 0o600
        load(Arguments(Path(spec.argv[-1]), ()), environ={})
    assert len(files) == 7
    for name, text in files.items():
        role = name.rstrip("-12")
        assert (secrets.postgres in text) == (role in ("scheduler", "registry")), name
        assert ("hidden" in text) == (role == "worker"), name
        assert tomllib.loads(text)["nats"]["password"] == secrets.nats_password(role)
        assert secrets.postgres_superuser not in text
        assert secrets.nats_operator not in text
    second = load(Arguments(layout.process_config_file("scheduler-2"), ()), environ={}).scheduler
    assert (second.id, second.listen, second.ops_listen) == ("scheduler-2", "127.0.0.1:7472", "127.0.0.1:7482")


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TABLES = st.recursive(
    st.dictionaries(TEXTS, PLAIN | st.lists(PLAIN, max_size=3), max_size=4),
    lambda inner: st.dictionaries(TEXTS, inner | PLAIN, max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_written_toml_reads_back_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(dump_toml(table)) == table

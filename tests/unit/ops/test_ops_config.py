from __future__ import annotations

from pathlib import Path

import pytest

from flint_ops.config import Arguments, ConfigError, load


def arguments(*assignments: str, config: Path | None = None) -> Arguments:
    return Arguments(config=config, assignments=assignments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flint.toml"
    path.write_text(
        '[gateway]\nlisten = "file:1"\nops_listen = "file:2"\nschedulers = ["a:1"]\n'
        '[cluster]\ninternal_token = "from-file"\n'
        '[connections.orders]\nkind = "sql"\nurl = "sqlite://"\n'
    )
    return path


def test_flags_win_over_environment_over_file_over_defaults(file: Path) -> None:
    settings = load(
        arguments("gateway.listen=flag:1", config=file),
        environ={"FLINT_GATEWAY__LISTEN": "env:1", "FLINT_GATEWAY__OPS_LISTEN": "env:2", "FLINT_API_KEY": "ignored"},
    )
    assert settings.gateway.listen == "flag:1"
    assert settings.gateway.ops_listen == "env:2"
    assert settings.gateway.schedulers == ["a:1"]
    assert settings.worker.pool == "default"


def test_lists_by_commas_tables_as_json_and_maps_by_key() -> None:
    settings = load(
        arguments(
            "gateway.schedulers=a:1, b:2",
            'nats.urls=["nats://x:1"]',
            "connections.mail.kind=smtp",
            "connections.mail.url=smtp://x:25",
            'worker.labels={"zone": "a"}',
            "worker.labels.disk=ssd",
        ),
        environ={"FLINT_SECRETS__TOKEN": "s"},
    )
    assert settings.gateway.schedulers == ["a:1", "b:2"]
    assert settings.nats.urls == ["nats://x:1"]
    assert settings.connections["mail"].kind == "smtp"
    assert settings.worker.labels == {"zone": "a", "disk": "ssd"}
    assert settings.secrets["token"].get_secret_value() == "s"


def test_each_error_names_the_key_and_its_source(file: Path) -> None:
    file.write_text(file.read_text() + "[worker]\nslots = 0\nplumbus = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(arguments("limits.watches=many", "nope.x=1", config=file), environ={"FLINT_LOG__LEVEL": "loud"})
    problems = {problem.key: problem.source for problem in caught.value.problems}
    assert problems == {
        "worker.slots": f"file {file}",
        "worker.plumbus": f"file {file}",
        "limits.watches": "flag --set limits.watches",
        "nope": "flag --set nope.x",
        "log.level": "environment variable FLINT_LOG__LEVEL",
    }


def test_a_secret_is_not_in_an_error(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(arguments("cluster.internal_token=hunter2", "cluster.name=NOT VALID", config=file), environ={})
    assert "hunter2" not in str(caught.value)


def test_required_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a Flint that was started in this folder has a configuration of its own
    with pytest.raises(ConfigError) as caught:
        load(arguments(), environ={}, require=["cluster.internal_token"])
    (problem,) = caught.value.problems
    assert (problem.key, problem.source) == ("cluster.internal_token", "default")


def test_a_named_file_must_exist_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(arguments(config=tmp_path / "no.toml"), environ={})
    broken = tmp_path / "broken.toml"
    broken.write_text("[gateway\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(arguments(), environ={"FLINT_CONFIG": str(broken)})


def test_a_flag_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(arguments("listen"), environ={})

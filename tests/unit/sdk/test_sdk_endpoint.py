"""Where the client looks for Flint."""

from __future__ import annotations

from pathlib import Path

import pytest

from flint_sdk import ConfigurationError
from flint_sdk._endpoint import find_endpoint


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLINT_ADDRESS", raising=False)
    monkeypatch.delenv("FLINT_KEY", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / ".flint"
    folder.mkdir()
    (folder / "flint.toml").write_text('[gateway]\nlisten = "0.0.0.0:9999"\n')
    (folder / "admin.key").write_text("flint_1_local\n")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    return deep


def test_the_nearest_folder_upwards_gives_address_and_key(project: Path) -> None:
    endpoint = find_endpoint(start=project)
    assert endpoint.addresses == ("127.0.0.1:9999",)
    assert endpoint.key == "flint_1_local"


def test_a_file_without_an_address_means_the_default(tmp_path: Path) -> None:
    (tmp_path / ".flint").mkdir()
    (tmp_path / ".flint" / "flint.toml").write_text("")
    assert find_endpoint(key="k", start=tmp_path).addresses == ("127.0.0.1:7470",)


def test_the_environment_goes_over_the_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINT_ADDRESS", "a:1, b:2")
    monkeypatch.setenv("FLINT_KEY", "flint_2_other")
    endpoint = find_endpoint(start=project)
    assert endpoint.addresses == ("a:1", "b:2")
    assert endpoint.key == "flint_2_other"


def test_the_local_key_is_not_shown_to_another_server(project: Path) -> None:
    with pytest.raises(ConfigurationError, match="FLINT_KEY"):
        find_endpoint("elsewhere:7470", start=project)
    assert find_endpoint("127.0.0.1:9999", start=project).key == "flint_1_local"


def test_nothing_to_be_found_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="flint up"):
        find_endpoint(start=tmp_path)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:http", "host:70000", ":7470"])
def test_malformed_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        find_endpoint(address, "k", start=tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".flint").mkdir()
    (tmp_path / ".flint" / "flint.toml").write_text("= nonsense")
    with pytest.raises(ConfigurationError, match=r"flint\.toml cannot be read"):
        find_endpoint(start=tmp_path)

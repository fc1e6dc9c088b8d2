"""Where the demo lives, and that its settings are settings."""

from __future__ import annotations

import socket
from pathlib import Path

from flint_cli.demo import demo_children, demo_settings
from flint_ops.config import Settings
from flint_stack.layout import Layout


def test_settings_and_children_agree_about_the_places(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / ".flint")
    settings = Settings.model_validate(demo_settings(layout))
    api, mail = demo_children(layout)
    assert settings.connections["mail"].url.get_secret_value() == f"smtp://{mail.address}"
    assert str(tmp_path) in settings.connections["orders"].url.get_secret_value()
    assert api.address in api.argv


def test_the_places_are_kept(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / ".flint")
    assert demo_settings(layout) == demo_settings(layout)


def test_a_taken_port_means_another_place(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / ".flint")
    demo_settings(layout)
    before, _ = demo_children(layout)
    host, _, port = before.address.rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        demo_settings(layout)
        after, _ = demo_children(layout)
    assert after.address != before.address

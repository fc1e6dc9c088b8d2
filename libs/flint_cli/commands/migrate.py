"""`flint migrate`: bring the database's schema to this build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, ExitCode


def migrate(
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings; FLINT_CONFIG or .flint/flint.toml unless told.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting; may be repeated.", metavar="SECTION.KEY=VALUE")
    ] = None,
) -> None:
    """Bring the database's schema to this build. Safe to run again, and beside running services."""
    # Here and not above: the database libraries take longer to load than every other command needs in all.
    from flint_ops.config import Arguments, ConfigError, load  # noqa: PLC0415
    from flint_store.errors import StoreError, StoreUnavailable  # noqa: PLC0415
    from flint_store.migrate import CODE_REVISION, upgrade  # noqa: PLC0415

    try:
        settings = load(Arguments(config, tuple(set_ or ())), require=("postgres.dsn",))
        applied = upgrade(settings.postgres.dsn.get_secret_value(), settings.cluster.shard_groups)
    except ConfigError as error:
        raise CommandFailed("the configuration is wrong:\n" + "\n".join(f"  {p}" for p in error.problems)) from error
    except StoreUnavailable as error:
        raise CommandFailed(str(error), ExitCode.UNAVAILABLE) from error
    except StoreError as error:
        raise CommandFailed(str(error)) from error
    print(f"schema {CODE_REVISION:04d}: {'applied ' + ', '.join(applied) if applied else 'nothing to do'}")

"""Exit codes, and what a person reads when a command does not succeed: one paragraph on stderr, never a traceback."""

from __future__ import annotations

import enum
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, Final

import typer

from flint_sdk import FlintError, RunCancelled, RunFailed, TimedOut, Unavailable

__all__ = ["CommandFailed", "ExitCode", "guarded", "say"]


class ExitCode(enum.IntEnum):
    """What the `flint` command tells its caller."""

    SUCCEEDED = 0
    FAILED = 1  # the run failed; something is unhealthy
    REFUSED = 2  # wrong usage, or Flint refused the request
    CANCELLED = 3  # the run was cancelled
    UNAVAILABLE = 4  # no gateway reachable, or not done in time
    DEFECT = 70
    INTERRUPTED = 130


class CommandFailed(Exception):
    """A command's own refusal, with the words for the user."""

    def __init__(self, message: str, code: ExitCode = ExitCode.REFUSED) -> None:
        super().__init__(message)
        self.code = code


# typer carries its own copy of click in newer versions and uses the installed one in older ones.
_UsageProblem: Final[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def say(message: str) -> None:
    """One paragraph on stderr."""
    print(message, file=sys.stderr, flush=True)


def guarded(command: Callable[[], Any]) -> int:
    """Runs a command and answers its exit code."""
    try:
        code = command()
    except _UsageProblem as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say("Interrupted.")
        return ExitCode.INTERRUPTED
    except CommandFailed as error:
        say(f"Error: {error}")
        return error.code
    except FlintError as error:
        say(f"Error: {describe(error)}")
        return code_of(error)
    except BrokenPipeError:
        # The reader of our output has gone; give the interpreter's last flush something that works.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.SUCCEEDED
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"Error: {place}{error.strerror or error}")
        return ExitCode.REFUSED
    except Exception as error:
        if os.environ.get("FLINT_DEBUG"):
            traceback.print_exc()
        what = textwrap.shorten(str(error) or "no message", 500)
        say(f"Error: a defect in the flint command: {type(error).__name__}: {what}. FLINT_DEBUG=1 shows where.")
        return ExitCode.DEFECT
    return int(code) if isinstance(code, int) else ExitCode.SUCCEEDED


def code_of(error: FlintError) -> ExitCode:
    """The exit code for an error of the client."""
    if isinstance(error, RunFailed):
        return ExitCode.FAILED
    if isinstance(error, RunCancelled):
        return ExitCode.CANCELLED
    if isinstance(error, Unavailable | TimedOut):
        return ExitCode.UNAVAILABLE
    return ExitCode.REFUSED


def describe(error: FlintError) -> str:
    """The message, then one line per refused field unless the message says it already."""
    unsaid = [violation for violation in error.violations if violation.description not in error.message]
    places = [f"  {v.field}: {v.description}" if v.field else f"  {v.description}" for v in unsaid]
    return "\n".join([error.message, *places])

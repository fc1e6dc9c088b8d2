"""`flint functions`: custom functions."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, say
from flint_cli.output import Format, FormatOption, ago, print_json, print_table
from flint_cli.session import session_of, with_client
from flint_sdk import AsyncFlint, Function, FunctionWorker, RegisteredFunction

app = typer.Typer(name="functions", help="List custom functions, and serve them.", no_args_is_help=True)


@app.command("list")
def list_(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List the functions that were ever registered."""

    async def command(client: AsyncFlint) -> list[RegisteredFunction]:
        return [function async for function in client.list_functions()]

    functions = with_client(context, command)
    if output is Format.JSON:
        print_json(functions)
        return
    rows = [
        (f.name, f.version, "yes" if f.connected else "no", ago(f.seen_time), f.description.partition("\n")[0][:60])
        for f in functions
    ]
    print_table(("FUNCTION", "VERSION", "CONNECTED", "SEEN", "DESCRIPTION"), rows, "No functions.")


@app.command()
def serve(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="Module that holds functions, or module:name of one.")],
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Tasks at the same time.")] = 10,
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds that tasks may go on after SIGTERM.")] = 20.0,
) -> None:
    """Serve the functions of a Python module until SIGTERM or Ctrl-C, then finish the tasks in hand."""
    functions = _functions_of(module)
    session = session_of(context)
    worker = FunctionWorker(
        functions,
        address=session.address,
        namespace=session.namespace,
        concurrency=concurrency,
        drain_s=drain_s,
    )
    say(f"Serving {', '.join(f'{f.name}:{f.version}' for f in functions)}. Ctrl-C ends it.")
    worker.run()


def _functions_of(text: str) -> list[Function[..., object]]:
    name, _, attribute = text.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: modules of the working folder
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise CommandFailed(f"{name} cannot be imported: {error}") from None
    if attribute:
        found = getattr(module, attribute, None)
        if not isinstance(found, Function):
            raise CommandFailed(f"{text} is no function made with @flint_sdk.function")
        return [found]
    functions = [value for value in vars(module).values() if isinstance(value, Function)]
    if not functions:
        raise CommandFailed(f"{name} holds no function made with @flint_sdk.function")
    return list({(f.name, f.version): f for f in functions}.values())

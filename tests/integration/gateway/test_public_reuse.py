"""What real runs do with functions, extensions, catalogs, policies, keys of their own and compensation."""

from __future__ import annotations

import asyncio

import pytest

from flint_sdk import RunState
from support.house import House
from support.outside import Outside

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def steps_of(house: House, run_id: str) -> list[str]:
    """Pointers of the steps that ended, in order."""
    return [step.step async for entry in house.flint.history(run_id) for step in entry.steps if step.end_time]


async def test_a_function_with_an_extension_runs_in_the_engine(house: House) -> None:
    body = """
use:
  functions:
    double: { do: [ { twice: { set: { n: '${ .n * 2 }' } } } ] }
  extensions:
    - note: { extend: set, before: [ { tell: { call: noop, with: { output: '${ $task.name }' } } } ] }
do:
  - first: { call: double, with: { n: '${ .n }' } }
  - second: { call: double }
"""
    run = await house.run(body, {"n": 5})
    assert run.output == {"n": 20}
    steps = await steps_of(house, run.id)
    assert "/do/0/first/functions/double/do/0/twice/extensions/note/before/0/tell" in steps
    assert "/do/1/second/functions/double/do/0/twice" in steps


async def test_a_failed_run_undoes_what_it_has_done_the_latest_first(house: House) -> None:
    body = """
use:
  functions:
    undo: { call: noop, with: { output: 'undone ${ .output }' } }
do:
  - a: { call: noop, with: { output: A }, metadata: { flint: { compensate: undo } } }
  - b: { call: noop, with: { output: B }, metadata: { flint: { compensate: undo } } }
  - c: { raise: { error: { type: 'https://x.test/odd', status: 418 } } }
"""
    run = await house.run(body, {})
    assert run.state is RunState.FAILED and run.error is not None and run.error.status == 418
    undone = [step for step in await steps_of(house, run.id) if step.endswith("/compensate")]
    assert undone == ["/do/1/b/metadata/flint/compensate", "/do/0/a/metadata/flint/compensate"]


async def test_a_function_of_a_catalog_is_read_at_apply_and_pinned(house: House) -> None:
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        text = b"set: { said: 'hello ${ .name }' }\n"
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    root = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    body = f"""
use: {{ catalogs: {{ tools: {{ endpoint: '{root}' }} }} }}
do:
  - greet: {{ call: 'hello:1.0.0@tools', with: {{ name: Ada }} }}
"""
    run = await house.run(body, {})
    listener.close()
    await listener.wait_closed()
    assert run.output == {"said": "hello Ada"}
    assert asked == ["/functions/hello/1.0.0/function.yaml"]


async def test_a_key_of_ones_own_and_a_uri_template_reach_the_other_side(house: House, world: Outside) -> None:
    body = """
timeout: { after: PT30S }
do:
  - pay:
      call: http
      with: { method: post, endpoint: '${ENDPOINT}/steps/{step}' }
      metadata: { flint: { idempotencyKey: 'pay ${ .order }' } }
"""
    run = await house.run(body.replace("${ENDPOINT}", world.url), {"step": "paid", "order": 7})
    assert run.error is None, run.error
    assert run.output == {"key": "pay 7"}
    assert [(each.step, each.key) for each in world.executions] == [("paid", "pay 7")]

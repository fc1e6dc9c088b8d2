// Restate's side: `service PORT` serves the handlers, `client INGRESS KIND` answers the harness's requests (harness.py).
import http from "node:http";
import readline from "node:readline";
import { randomBytes, randomUUID } from "node:crypto";
import * as restate from "@restatedev/restate-sdk";

const moment = () => performance.timeOrigin + performance.now();

async function steps(ctx, input) {
  let began = 0;
  if (input?.branches) {
    const parts = [];
    for (let n = 0; n < input.branches; n++) parts.push(ctx.run(`step${n}`, async () => n));
    return (await restate.RestatePromise.all(parts)).length;
  }
  for (let n = 0; n < (input?.steps ?? 1); n++) {
    const at = await ctx.run(`step${n}`, async () => moment());
    began ||= at;
  }
  return began;
}

// What a run of the mixed day does; payloads are input and result of its first step.
async function day(ctx, { kind, blob, fail, waitMs, branches }) {
  await ctx.run("work", async () => blob);
  if (kind === "wait") {
    await ctx.sleep(waitMs);
    await ctx.run("again", async () => null);
  } else if (kind === "wide") {
    await restate.RestatePromise.all(Array.from({ length: branches }, (_, n) => ctx.run(`all${n}`, async () => null)));
  }
  if (fail) throw new restate.TerminalError("As asked for");
  return { ok: true };
}

function serve(port) {
  restate.serve({
    services: [
      restate.workflow({ name: "BenchWorkflow", handlers: { run: steps } }),
      restate.workflow({ name: "BenchDay", handlers: { run: day } }),
      restate.service({ name: "BenchService", handlers: { run: steps } }),
    ],
    port,
    logger: (meta, ...message) => { if (meta.level === "error" || meta.level === "warn") console.error(...message); },
  });
}

function client(ingress, kind) {
  const base = new URL(ingress);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4096 });
  const path = () => (kind === "workflow" ? `/BenchWorkflow/${randomUUID()}/run` : "/BenchService/run");

  const once = (input, to = path()) =>
    new Promise((resolve, reject) => {
      const body = JSON.stringify(input);
      const request = http.request(
        {
          agent, host: base.hostname, port: base.port, method: "POST", path: to,
          headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body) },
        },
        (response) => {
          let text = "";
          response.on("data", (part) => (text += part));
          response.on("end", () =>
            response.statusCode === 200 ? resolve(JSON.parse(text)) : reject(new Error(`${response.statusCode} ${text}`)));
        },
      );
      request.on("error", reject);
      request.end(body);
    });

  async function singly({ steps, runs, callers }) {
    let left = runs;
    const began = performance.now();
    await Promise.all(
      Array.from({ length: callers }, async () => {
        while (left > 0) {
          left -= 1;
          await once({ steps });
        }
      }),
    );
    return { rate: runs / ((performance.now() - began) / 1000) };
  }

  async function timed(runs, take) {
    const times = [];
    for (let n = 0; n < runs; n++) times.push(await take());
    return { times };
  }

  // Runs started at a steady rate, whatever becomes of them meanwhile; `stop` returns when all have ended.
  function loading(perS) {
    const began = performance.now();
    const open = new Set();
    let begun = 0, failed = null;
    const timer = perS && setInterval(() => {
      for (const due = Math.floor(((performance.now() - began) / 1000) * perS); begun < due; begun++) {
        const one = once({ steps: 1 }).catch((error) => { failed ??= error; }).finally(() => open.delete(one));
        open.add(one);
      }
    }, 10);
    return {
      stop: async () => {
        clearInterval(timer);
        await Promise.all(open);
        if (failed) throw failed;
      },
    };
  }

  // A closed loop; who sleeps keeps no caller, as in heavy/mixed.py. Answers by windows, because ends are many.
  async function mixed({ callers, sleepers, windowMs, windows, waitMs, branches, kinds, sizes, failing }) {
    const drawn = (shares) => {
      let left = Math.random();
      for (const [value, share] of shares) if ((left -= share) < 0) return value;
      return shares[0][0];
    };
    const blobs = Object.fromEntries(
      sizes.map(([size]) => [size, [0, 1, 2, 3].map(() => randomBytes(size / 2).toString("hex"))]),
    );
    const p99 = (times) => {
      times.sort((a, b) => a - b);
      return times.length ? times[Math.min(times.length - 1, Math.floor(0.99 * times.length))] : 0;
    };
    const ends = [];
    let wrong = 0;
    const sleeping = new Set();
    const began = performance.now();
    async function run(kind, fail, blob) {
      const at = performance.now();
      let failed = false;
      try {
        await once({ kind, blob, fail, waitMs, branches }, `/BenchDay/${randomUUID()}/run`);
      } catch (error) {
        failed = true;
        if (!fail || !String(error).includes("As asked for")) wrong += 1;
      }
      if (fail && !failed) wrong += 1;
      const now = performance.now();
      ends.push([now - began, kind, now - at - (kind === "wait" ? waitMs : 0)]);
    }
    await Promise.all(
      Array.from({ length: callers }, async () => {
        while (performance.now() - began < windows * windowMs) {
          const kind = drawn(kinds);
          const ending = run(kind, Math.random() < failing, blobs[drawn(sizes)][Math.floor(Math.random() * 4)]);
          if (kind !== "wait") await ending;
          else {
            const slept = ending.finally(() => sleeping.delete(slept));
            sleeping.add(slept);
            while (sleeping.size >= sleepers) await Promise.race(sleeping);
          }
        }
      }),
    );
    await Promise.all(sleeping);
    const names = kinds.map(([kind]) => kind);
    const of = (chosen) => Object.fromEntries(
      names.map((name) => [name, p99(chosen.filter(([, kind]) => kind === name).map(([, , ms]) => ms))]),
    );
    const perWindow = Array.from({ length: windows }, () => []);
    for (const end of ends) perWindow[Math.floor(end[0] / windowMs)]?.push(end);
    return {
      windows: perWindow.map((chosen) => ({ rate: chosen.length / (windowMs / 1000), ...of(chosen) })), p99: of(ends), wrong,
    };
  }

  const requests = {
    singly,
    mixed,
    // There is no call that starts many: as many as Flint's batches have in flight, each a request of its own.
    batches: ({ steps, runs }) => singly({ steps, runs, callers: 800 }),
    alone: ({ steps, runs }) =>
      timed(runs, async () => {
        const began = performance.now();
        await once({ steps });
        return performance.now() - began;
      }),
    begin: async ({ runs, load_per_s }) => {
      const load = loading(load_per_s ?? 0);
      if (load_per_s) await new Promise((resolve) => setTimeout(resolve, 500));
      const found = await timed(runs, async () => {
        const began = moment();
        return (await once({ steps: 1 })) - began;
      });
      await load.stop();
      return found;
    },
    fan: ({ branches }) =>
      timed(1, async () => {
        const began = performance.now();
        await once({ branches });
        return performance.now() - began;
      }),
  };

  console.log(JSON.stringify({ ready: true }));
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const { what, ...request } = JSON.parse(line);
    let answer;
    try {
      answer = await requests[what](request);
    } catch (error) {
      answer = { error: String(error) };
    }
    console.log(JSON.stringify(answer));
  });
  lines.on("close", () => process.exit(0));
}

const [mode, ...rest] = process.argv.slice(2);
if (mode === "service") serve(Number(rest[0]));
else client(...rest);

// Restate's side: `service PORT` serves the handlers, `client INGRESS KIND` answers the harness's requests (harness.py).
import http from "node:http";
import readline from "node:readline";
import { randomUUID } from "node:crypto";
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

function serve(port) {
  restate.serve({
    services: [
      restate.workflow({ name: "BenchWorkflow", handlers: { run: steps } }),
      restate.service({ name: "BenchService", handlers: { run: steps } }),
    ],
    port,
    logger: (meta, ...message) => { if (meta.level === "error" || meta.level === "warn") console.error(...message); },
  });
}

function client(ingress, kind) {
  const base = new URL(ingress);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1024 });
  const path = () => (kind === "workflow" ? `/BenchWorkflow/${randomUUID()}/run` : "/BenchService/run");

  const once = (input) =>
    new Promise((resolve, reject) => {
      const body = JSON.stringify(input);
      const request = http.request(
        {
          agent, host: base.hostname, port: base.port, method: "POST", path: path(),
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

  const requests = {
    singly,
    // There is no call that starts many: as many as Flint's batches have in flight, each a request of its own.
    batches: ({ steps, runs }) => singly({ steps, runs, callers: 800 }),
    alone: ({ steps, runs }) =>
      timed(runs, async () => {
        const began = performance.now();
        await once({ steps });
        return performance.now() - began;
      }),
    begin: ({ runs }) =>
      timed(runs, async () => {
        const began = moment();
        return (await once({ steps: 1 })) - began;
      }),
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

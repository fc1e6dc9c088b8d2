/**
 * A function worker in TypeScript, from the generated stubs alone: it registers examples/greet-ts, serves it, starts a
 * run that calls it, and prints the run's result.
 *
 *     FLINT_ADDRESS=127.0.0.1:7470 FLINT_KEY=flint_… npm start
 */

import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { FunctionWorkerServiceClient } from "../gen/flint/functions/v1/functions.js";
import {
  type AwaitRunResponse,
  Run_State,
  RunServiceClient,
  StartRunRequest,
  type StartRunResponse,
} from "../gen/flint/runs/v1/runs.js";
import { type ApplyWorkflowResponse, WorkflowServiceClient } from "../gen/flint/workflows/v1/workflows.js";
import { Worker } from "./worker.js";

const parent = "namespaces/default";
const definition = `
document: {dsl: 1.0.3, namespace: default, name: greet-ts, version: 1.0.0}
do:
  - greet: {call: 'examples/greet-ts:1.0.0', with: {name: '\${ .name }'}, timeout: {after: {minutes: 1}}}
`;

const address = process.env.FLINT_ADDRESS;
const key = process.env.FLINT_KEY;
if (!address || !key) {
  console.error("set FLINT_ADDRESS (host:port of a gateway) and FLINT_KEY (an API key)");
  process.exit(2);
}
const metadata = new Metadata();
metadata.set("authorization", `Bearer ${key}`);
const insecure = credentials.createInsecure();

/** A unary call as a promise. */
function ask<R>(call: (done: (error: ServiceError | null, response: R) => void) => unknown): Promise<R> {
  return new Promise((resolve, reject) => {
    call((error, response) => (error ? reject(error) : resolve(response)));
  });
}

const json = (value: unknown) => Buffer.from(JSON.stringify(value));

const worker = new Worker(new FunctionWorkerServiceClient(address, insecure), metadata, {
  parent,
  name: "greet-ts",
  concurrency: 4,
  functions: [
    {
      declaration: {
        name: "examples/greet-ts",
        version: "1.0.0",
        description: "Greets somebody by name.",
        inputSchema: json({ type: "object", required: ["name"], properties: { name: { type: "string" } } }),
        outputSchema: json({ type: "object", required: ["greeting"] }),
        heartbeatTimeout: { seconds: 15, nanos: 0 },
      },
      serve: async (task, progress) => {
        const { name } = JSON.parse(Buffer.from(task.arguments).toString()) as { name: string };
        progress(50, "looking for kind words");
        return { greeting: `Hello ${name}, from TypeScript` };
      },
    },
  ],
});

async function main(): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    worker.run(resolve).catch(reject);
  });
  const workflows = new WorkflowServiceClient(address!, insecure);
  await ask<ApplyWorkflowResponse>((done) =>
    workflows.applyWorkflow({ parent, source: definition, validateOnly: false }, metadata, done),
  );
  const runs = new RunServiceClient(address!, insecure);
  const started = await ask<StartRunResponse>((done) =>
    runs.startRun(
      StartRunRequest.fromPartial({ parent, workflowId: "greet-ts", input: json({ name: "Ada" }) }),
      metadata,
      done,
    ),
  );
  const { run } = await ask<AwaitRunResponse>((done) =>
    runs.awaitRun({ name: started.run!.name, timeout: { seconds: 60, nanos: 0 } }, metadata, done),
  );
  if (run?.state !== Run_State.STATE_SUCCEEDED) throw new Error(`the run ended badly: ${JSON.stringify(run?.error)}`);
  console.log(Buffer.from(run.output).toString());
}

main()
  .then(() => 0)
  .catch((error: unknown) => (console.error(error), 1))
  .then((code) => {
    worker.stop();
    setTimeout(() => process.exit(code), 200);
  });

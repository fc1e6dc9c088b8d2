/** Serves functions over one stream, and opens another one whenever it breaks. Tasks outlive streams. */

import { type ClientDuplexStream, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import type {
  ConnectRequest,
  ConnectResponse,
  FunctionDeclaration,
  FunctionWorkerServiceClient,
  Task,
} from "../gen/flint/functions/v1/functions.js";

/** Executes one task. `signal` aborts when the task is not wanted any more. */
export type Serve = (
  task: Task,
  progress: (percent: number, message: string) => void,
  signal: AbortSignal,
) => Promise<unknown>;

interface Running {
  abort: AbortController;
  /** What is said until it is acknowledged; undefined while the function runs. */
  outcome?: ConnectRequest;
}

const REFUSALS = new Set([status.INVALID_ARGUMENT, status.PERMISSION_DENIED, status.UNAUTHENTICATED]);
const REPEAT_MS = 5_000;

export class Worker {
  private readonly tasks = new Map<string, Running>();
  private stream?: ClientDuplexStream<ConnectRequest, ConnectResponse>;
  private stopped = false;

  constructor(
    private readonly client: FunctionWorkerServiceClient,
    private readonly metadata: Metadata,
    private readonly options: {
      parent: string;
      name: string;
      concurrency: number;
      functions: { declaration: FunctionDeclaration; serve: Serve }[];
    },
  ) {}

  /** Until `stop`; rejects when the gateway refuses the worker. `welcomed` is called after every connection. */
  async run(welcomed: () => void): Promise<void> {
    let pause = 50;
    while (!this.stopped) {
      try {
        await this.connect(() => {
          pause = 50;
          welcomed();
        });
      } catch (error) {
        if (REFUSALS.has((error as ServiceError).code)) throw error;
        if (!this.stopped) console.error(`the stream ended (${String(error)}); connecting again`);
      }
      if (!this.stopped) await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, 1_000);
    }
  }

  /** Leaves: tasks that are not finished are given to other function workers. */
  stop(): void {
    this.stopped = true;
    this.send({ message: { $case: "goodbye", goodbye: { tasks: [...this.tasks.keys()] } } });
    for (const task of this.tasks.values()) task.abort.abort();
  }

  private connect(welcomed: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const stream = this.client.connect(this.metadata);
      const repeat = setInterval(() => this.repeat(), REPEAT_MS);
      const end = () => {
        clearInterval(repeat);
        this.stream = undefined;
      };
      stream.on("error", (error) => (end(), reject(error)));
      stream.on("end", () => (end(), stream.end(), resolve()));
      stream.on("data", ({ message }: ConnectResponse) => {
        switch (message?.$case) {
          case "welcome":
            this.stream = stream;
            this.repeat();
            this.credit(this.options.concurrency - this.tasks.size);
            welcomed();
            break;
          case "task":
            void this.execute(message.task);
            break;
          case "ack":
            this.forget(message.ack.token);
            break;
          case "cancel":
            this.forget(message.cancel.token);
            break;
          case "drain":
            break; // the gateway ends the stream, and another one is opened
        }
      });
      const unsettled = [...this.tasks].filter(([, task]) => task.outcome === undefined).map(([token]) => token);
      stream.write({
        message: {
          $case: "hello",
          hello: {
            parent: this.options.parent,
            worker: this.options.name,
            functions: this.options.functions.map(({ declaration }) => declaration),
            tasks: unsettled,
          },
        },
      });
    });
  }

  private async execute(task: Task): Promise<void> {
    const { token } = task;
    const running: Running = { abort: new AbortController() };
    this.tasks.set(token, running);
    const interval = task.heartbeatInterval ?? { seconds: 10, nanos: 0 };
    const beat = setInterval(
      () => this.send({ message: { $case: "heartbeat", heartbeat: { token, message: "" } } }),
      interval.seconds * 1_000 + interval.nanos / 1e6,
    );
    const progress = (progressPercent: number, message: string) =>
      this.send({ message: { $case: "heartbeat", heartbeat: { token, progressPercent, message } } });
    let outcome: ConnectRequest;
    try {
      const { serve } = this.options.functions.find(({ declaration }) => declaration.name === task.function)!;
      const output = Buffer.from(JSON.stringify((await serve(task, progress, running.abort.signal)) ?? null));
      outcome = { message: { $case: "complete", complete: { token, output } } };
    } catch (error) {
      const problem = { type: "", status: 0, title: "The function failed", detail: String(error), instance: "" };
      outcome = { message: { $case: "fail", fail: { token, problem, retryable: true, retryAfter: undefined } } };
    } finally {
      clearInterval(beat);
    }
    running.outcome = outcome;
    if (this.tasks.get(token) === running) this.send(outcome);
  }

  /** Says outcomes again that nobody acknowledged: while there is no answer, nobody may have them. */
  private repeat(): void {
    for (const { outcome } of this.tasks.values()) if (outcome) this.send(outcome);
  }

  /** Its outcome is settled, or nobody wants it: its slot is free. */
  private forget(token: string): void {
    const task = this.tasks.get(token);
    if (task === undefined) return;
    task.abort.abort();
    this.tasks.delete(token);
    this.credit(1);
  }

  private credit(tasks: number): void {
    if (tasks > 0 && !this.stopped) this.send({ message: { $case: "credit", credit: { tasks } } });
  }

  /** What cannot be sent now is said again on the next stream. */
  private send(request: ConnectRequest): void {
    this.stream?.write(request);
  }
}

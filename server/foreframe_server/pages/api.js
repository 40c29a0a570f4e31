// Asks the server that sent this page, and no other: documents, event streams, refusals, and what was asked lately.

import { unpack } from "./msgpack.js";

const KEY = "foreframe.key";
const MAX_RECENT = 50;
const LONGEST_WAIT_MS = 8000;

/** What the server refused, in its own words: a problem document (RFC 9457). */
export class Refusal extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? "unknown";
    this.errors = problem.errors ?? [];
    this.requestId = problem.request_id ?? null;
    this.isRetryable = problem.retryable ?? false;
    this.retryAfterMs = problem.retry_after_ms ?? null;
  }
}

/** The server did not answer at all, or went away in the middle of an answer. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. What you entered is kept.");
  }
}

/** The caller's key, `id.secret`: kept for this tab only, and sent with every request. */
export const key = {
  read: () => sessionStorage.getItem(KEY) ?? "",
  write(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    connection.ask();
  },
};

/** Whether the server answers: tells `change` listeners, and asks again by itself while it does not. */
class Connection extends EventTarget {
  isUp = true;
  #wait = 500;
  #timer = 0;

  tell(isUp) {
    if (isUp) this.#wait = 500;
    else this.#askLater();
    if (isUp === this.isUp) return;
    this.isUp = isUp;
    this.dispatchEvent(new Event("change"));
  }

  /** Ask now; `change` listeners hear of it. */
  async ask() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const reply = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
    this.tell(reply !== null && (reply.ok || reply.status < 500));
    if (this.isUp) this.dispatchEvent(new Event("answer"));
  }

  /** Wait until the server answers. Rejects when `signal` aborts. */
  untilUp(signal) {
    if (this.isUp) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const settle = () => this.isUp && (this.removeEventListener("change", settle), resolve());
      this.addEventListener("change", settle);
      signal?.addEventListener("abort", () => (this.removeEventListener("change", settle), reject(signal.reason)));
    });
  }

  #askLater() {
    if (this.#timer) return;
    this.#timer = setTimeout(() => this.ask(), this.#wait);
    this.#wait = Math.min(LONGEST_WAIT_MS, this.#wait * 2);
  }
}

export const connection = new Connection();

/** What this page asked lately, newest first; `change` tells of every new or finished one. */
class Recent extends EventTarget {
  list = [];

  open(method, path, body, accept) {
    const record = { method, path, body, accept, at: new Date(), started: performance.now(), status: null, ms: null,
      requestId: null, timings: null, warnings: [], problem: null, causes: [] };
    this.list = [record, ...this.list].slice(0, MAX_RECENT);
    this.#tell();
    return record;
  }

  close(record, status, reply) {
    record.status = status;
    record.ms = performance.now() - record.started;
    record.timings = reply?.timings_ms ?? null;
    record.warnings = reply?.warnings ?? [];
    this.#tell();
  }

  refuse(record, status, refusal) {
    record.problem = refusal.message;
    record.causes = refusal.errors ?? [];
    record.requestId ??= refusal.requestId ?? null;
    this.close(record, status, null);
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}

export const recent = new Recent();

/** Read a JSON document. `{quiet}` keeps it out of the recent requests. Throws Refusal or Unreachable. */
export const get = (path, options = {}) => call("GET", path, undefined, options);

/** Send a document, read one. `{binary: true}` asks for msgpack, whose arrays are {dtype, shape, data: Uint8Array}. */
export const post = (path, body, options = {}) => call("POST", path, body, options);

/** Delete something. */
export const remove = (path, options = {}) => call("DELETE", path, undefined, options);

/** Send a document and hear of every event on the way: `onEvent(name, document)`; returns what `done` held. */
export async function stream(path, body, onEvent, { signal } = {}) {
  const record = recent.open("POST", path, body, "text/event-stream");
  const reply = await send(record, signal, false);
  let done = null;
  try {
    for await (const [name, data] of events(reply.body)) {
      if (name === "error") throw new Refusal(data, data.status);
      if (name === "done") done = data;
      else onEvent(name, data);
    }
  } catch (error) {
    throw fail(record, error, error.status ?? reply.status);
  }
  if (done === null) throw fail(record, new Unreachable(), 0);
  recent.close(record, reply.status, done);
  return done;
}

async function call(method, path, body, { signal, binary = false, quiet = false }) {
  const accept = binary ? "application/msgpack" : "application/json";
  const record = quiet ? { method, path, body, accept } : recent.open(method, path, body, accept);
  const reply = await send(record, signal, quiet);
  let document = null;
  try {
    if (reply.status !== 204) document = binary ? unpack(await reply.arrayBuffer()) : await reply.json();
  } catch (error) {
    throw quiet ? new Unreachable() : fail(record, error, reply.status);
  }
  if (!quiet) recent.close(record, reply.status, document);
  return document;
}

async function send(record, signal, quiet) {
  let reply;
  try {
    reply = await fetch(record.path, { method: record.method, headers: headersOf(record), signal, cache: "no-store",
      body: record.body === undefined ? undefined : JSON.stringify(record.body) });
  } catch (error) {
    throw quiet ? unreachable(error) : fail(record, error, 0);
  }
  connection.tell(true);
  record.requestId = reply.headers.get("x-request-id");
  if (reply.ok) return reply;
  const refusal = new Refusal(await reply.json().catch(() => ({})), reply.status);
  throw quiet ? refusal : fail(record, refusal, reply.status);
}

function headersOf({ body, accept }) {
  const headers = { Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key.read()) headers.Authorization = `Bearer ${key.read()}`;
  return headers;
}

function fail(record, error, status) {
  const told = error instanceof Refusal ? error : unreachable(error);
  recent.refuse(record, status, told.name === "AbortError" ? { message: "This page stopped it." } : told);
  return told;
}

function unreachable(error) {
  if (error.name === "AbortError") return error;
  connection.tell(false);
  return error instanceof Unreachable ? error : new Unreachable();
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      if (name) yield [name, JSON.parse(/^data: (.*)$/m.exec(block)[1])];
    }
  }
}

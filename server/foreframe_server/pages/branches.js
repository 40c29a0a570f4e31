// One line of a drive: a session of the server and every frame that it showed. Rewinds, forks, outlives its session.

import { Refusal, post, remove } from "./api.js";
import { cameraClip, imageOf } from "./frames.js";
import { readClip } from "./recording.js";

/** The server knows the session no more, or not as this page does. */
const LOST = new Set(["unknown_model", "gone", "step_out_of_order"]);
const MAX_BYTES = 256e6;

/** Frames and the row of states of each, context first; `length` counts the predicted ones.
 *
 * Several frames rest on the same context, a window: each is predicted from there with all rows since, and the session
 * is put back to the window's start until the window is full. So errors add up by the window, not by the frame.
 */
export class Branch {
  isLogged = true;
  #prepared = null;

  /** starts: the frames with which the session's windows begin, the last of them the present one.
   *
   * steps: how many the session has committed. isOpen: whether the present window takes further frames.
   */
  constructor(model, { frames, rows, id, seed, starts, steps, isOpen }) {
    Object.assign(this, { model, frames, rows, id, seed, starts, steps, isOpen });
  }

  /** Start from the context of a clip that comes with the model. Throws Refusal or Unreachable. */
  static async start(model, clip, seed) {
    const [recording, session] = await Promise.all([readClip(model, clip),
      post("/v1/sessions", { model: model.id, clip, ...(seed !== null && { seed }) })]);
    const seen = model.context_frames;
    return new Branch(model, { frames: recording.frames.slice(0, seen), rows: recording.states.values.slice(0, seen),
      id: session.session_id, seed: session.seed, starts: [seen], steps: 0, isOpen: true });
  }

  get length() {
    return this.frames.length - this.model.context_frames;
  }

  /** The row of states of predicted frame `at`, 0 the last that was seen. */
  rowAt(at) {
    return this.rows[this.model.context_frames - 1 + at];
  }

  /** Frame `at`, 0 the last that was seen; the last one for what is behind the end. */
  frameAt(at) {
    return this.frames[Math.min(this.model.context_frames - 1 + at, this.frames.length - 1)];
  }

  /** Whether there is room for no more frames. */
  get isFull() {
    const { width, height } = this.model.cameras[0];
    return this.frames.length * width * height * 4 > MAX_BYTES;
  }

  /** Predict the frame after a row of states, keep it and return the reply. Throws Refusal or Unreachable.
   *
   * window: how many frames rest on the same context.
   */
  async step(row, sampling, window) {
    if (!this.isOpen) this.#openWindow();
    const reply = (await this.#surely(() => this.#ask(row, sampling))) ?? (await this.#ask(row, sampling));
    this.isLogged = false;
    this.frames.push(await imageOf(reply.frames[0].image));
    this.rows.push(row);
    this.isOpen = this.frames.length - this.starts.at(-1) < window;
    // The context is encoded while the frame is drawn.
    if (this.isOpen) this.#prepared = this.#stand().catch(() => null);
    return reply;
  }

  /** Take back every frame after `at`. */
  async rewind(at) {
    if (at >= this.length) return;
    const kept = this.model.context_frames + at;
    this.frames.length = this.rows.length = kept;
    if (kept < this.starts[0]) {
      await this.#revive();
      return;
    }
    while (this.starts.at(-1) > kept) this.starts.pop();
    this.isOpen = true;
    await this.#surely(() => this.#stand());
  }

  /** Make another branch that goes on from frame `at`; this one stays as it is. */
  async fork(at) {
    await this.#prepared;
    const { frames, rows, starts } = this;
    const copies = { frames: frames.slice(), rows: rows.slice(), starts: starts.slice() };
    const fork = new Branch(this.model, { ...this, ...copies });
    await fork.#surely(async () => (fork.id = (await post(`/v1/sessions/${this.id}/forks`, {})).session_id));
    await fork.rewind(at);
    return fork;
  }

  /** End the session; what was shown stays. */
  async end() {
    await remove(`/v1/sessions/${this.id}`, { quiet: true }).catch(() => null);
  }

  #openWindow() {
    this.starts.push(this.frames.length);
    this.isOpen = true;
  }

  async #ask(row, sampling) {
    await this.#prepared;
    await this.#stand();
    const values = [...this.rows.slice(this.starts.at(-1)), row];
    const reply = await post(`/v1/sessions/${this.id}/steps`, { step_id: this.starts.length, sampling, frames: "last",
      future: { values }, return: { encoding: "raw", variance: "none" } }, { binary: true, quiet: !this.isLogged });
    this.steps = this.starts.length;
    return reply;
  }

  /** Have the session stand at the start of the present window. */
  async #stand() {
    const steps = this.starts.length - 1;
    const quiet = !this.isLogged;
    if (this.steps > steps) await post(`/v1/sessions/${this.id}/rollback`, { step_id: steps }, { quiet });
    this.steps = steps;
  }

  /** Ask. Where the server has forgotten the session or its past, start another from the frames and return null. */
  async #surely(ask) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Refusal && LOST.has(error.code))) throw error;
      await this.#revive();
      return null;
    }
  }

  async #revive() {
    const { model, frames, rows } = this;
    const seen = model.context_frames;
    const session = await post("/v1/sessions", { model: model.id, seed: this.seed + frames.length, observation: {
      cameras: { [model.cameras[0].name]: cameraClip(frames.slice(-seen)) }, state: { values: rows.slice(-seen) } } });
    Object.assign(this, { id: session.session_id, starts: [frames.length], steps: 0, isOpen: true });
  }
}

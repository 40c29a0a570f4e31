// How a drive keeps up: frames shown a second, time from an input to the frame that heeds it, work that fits the time.

const WINDOW_MS = 2000;
const MAX_INPUTS = 200;
const WANTED_MS = 100;
const SLACK = 0.45;

/** Wait until what was drawn is on the screen. */
export const shown = () => new Promise((resolve) => requestAnimationFrame(() => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => resolve(performance.now());
  port2.postMessage(null);
}));

/** Wait until a time of `performance.now`. */
export const until = (time) => new Promise((resolve) => setTimeout(resolve, Math.max(0, time - performance.now())));

/** The value that a share 0..1 of numbers does not exceed; null without numbers. */
export const quantile = (numbers, share) =>
  (numbers.length ? [...numbers].sort((one, other) => one - other)[Math.ceil(share * numbers.length) - 1] : null);

/** What was shown when, and how long inputs waited for it. Times are in ms of `performance.now`. */
export class Pace {
  inputs = [];
  serverMs = null;
  #frames = [];
  #waiting = null;

  /** Somebody did something. */
  touch(time) {
    this.#waiting ??= time;
  }

  /** Take the oldest input that no frame heeds yet: the next one does. */
  take() {
    const time = this.#waiting;
    this.#waiting = null;
    return time;
  }

  /** A frame is on the screen that heeds the input of a time, or none. */
  note(time, input, serverMs) {
    this.#frames = [...this.#frames.filter((at) => at > time - WINDOW_MS), time];
    if (input !== null) this.inputs = [...this.inputs, time - input].slice(-MAX_INPUTS);
    this.serverMs = serverMs;
  }

  /** Frames a second over the last two seconds; null before two frames. */
  get rate() {
    const [first, last] = [this.#frames[0], this.#frames.at(-1)];
    return this.#frames.length < 2 ? null : (1000 * (this.#frames.length - 1)) / (last - first);
  }

  /** Forget when frames were shown: there was a pause. */
  rest() {
    this.#frames = [];
    this.#waiting = null;
  }
}

/** How many solver steps a frame gets: the model's own, or as many as let ten frames a second pass. */
export class Effort {
  #mean = null;

  constructor({ steps }) {
    this.most = this.steps = steps;
  }

  /** Learn what a frame took. */
  learn(ms) {
    this.#mean = this.#mean === null ? ms : 0.75 * this.#mean + 0.25 * ms;
    if (this.#mean > WANTED_MS && this.steps > 1) this.#take(Math.floor(this.steps / 2));
    else if (this.#mean < SLACK * WANTED_MS && this.steps < this.most) this.#take(Math.min(this.most, 2 * this.steps));
  }

  #take(steps) {
    this.#mean = null;
    this.steps = steps;
  }
}

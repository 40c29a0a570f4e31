// Drive: somebody moves the robot, and the world model shows what comes next, frame by frame; rewind, branch, compare.

import { Unreachable, connection } from "./api.js";
import { Branch } from "./branches.js";
import { clipChoice } from "./clips.js";
import { Joints } from "./joints.js";
import { Effort, Pace, quantile, shown, until } from "./pace.js";
import { Screens } from "./screens.js";
import { alertPlace, announce, button, clearRefusals, facts, field, h, input, isTyped, numberIn, quantity,
  select, showRefusal } from "./ui.js";

const IDLE_MS = 60_000;
const TELL_MS = 250;
const PAD_BUTTONS = new Map([[0, "toggle"], [1, "rewind"], [3, "fork"], [4, "left"], [5, "right"]]);
const WINDOWS = [1, 2, 4, 8];
const KEYS = [["Space", "drive or pause"], ["z", "rewind"], ["b", "branch"], ["1 2", "take branch A or B"],
  ["x", "the other arm"], ["w s", "base forward, back"], ["a d", "base turns"]];
const PAD_WORDS = "Keys of the joints stand beside their sliders. Gamepad: the left stick drives, the right one " +
  "moves the shoulder, the cross the elbow and the neck, triggers the hand; bumpers choose the arm. A drives, " +
  "B rewinds, Y branches.";

/** Fill the panel. Whoever leaves the view pauses the drive. */
export async function mount(panel, context) {
  const drive = new Drive(panel, context);
  await drive.listClips();
  return { hide: () => drive.pause() };
}

class Drive {
  running = null;
  branches = [];
  chosen = 0;
  #acting = Promise.resolve();
  #lastInput = 0;
  #lastTold = 0;
  #pressed = new Set();

  constructor(panel, { model, schema }) {
    Object.assign(this, { panel, model, pace: new Pace(), effort: new Effort(model.sampler) });
    this.joints = new Joints(schema, model.fps, (time) => this.#touch(time));
    this.legend = keyLegend();
    this.screens = new Screens(model, this.legend, (at) => this.#look(at), (index) => this.#choose(index));
    this.refusals = alertPlace();
    this.form = h("form", { className: "asking", noValidate: true, onsubmit: (event) => event.preventDefault() },
      this.#start(), this.#hands(), this.#settings());
    panel.append(h("div", { className: "split drive" }, this.form, this.#stage()));
    this.#listen();
  }

  #start() {
    this.clips = h("fieldset", {}, h("legend", {}, "Start from"));
    return this.clips;
  }

  #settings() {
    this.way = this.#wayChoice();
    this.window = this.#windowChoice();
    this.seed = input("drive-seed", { type: "number", min: 0, placeholder: "drawn" });
    const fields = h("div", { className: "grid" },
      field("A frame is", this.way, { pointers: ["/sampling"], wide: true,
        hint: "One member. Fewer steps and the mean are quicker and blur more." }),
      field("From one context", this.window, { pointers: ["/future"], wide: true,
        hint: "Each is predicted from the same context with all rows since. " +
          "Errors add up slower than from frame to frame." }),
      field("Seed", this.seed, { pointers: ["/seed"], wide: true, hint: "Of the next start" }));
    return h("details", { className: "settings" }, h("summary", {}, "How frames are made"), fields);
  }

  #wayChoice() {
    const { steps } = this.model.sampler;
    const counts = halvesOf(steps).map((count) => [String(count), `Sample, ${stepsOf(count)}`]);
    return select("drive-way", [["auto", `As many steps as keep up, at most ${steps}`], ...counts,
      ["posterior_mean", "Posterior mean, one pass"]]);
  }

  #windowChoice() {
    const most = this.model.horizon;
    const counts = [...new Set(WINDOWS.map((count) => Math.min(most, count)))];
    const choice = select("drive-window", counts.map((count) => [String(count), framesOf(count)]));
    if (!isTyped(choice)) choice.value = String(counts.at(-1));
    return choice;
  }

  #hands() {
    return h("fieldset", {}, h("legend", {}, "Move"), h("p", { className: "hint" },
      "Joints go where their slider stands, at most a full range in 1.2\u202fs; base speeds end when they are let go."),
      this.joints.node);
  }

  #stage() {
    this.words = h("p", { className: "hint", role: "status" });
    this.speed = facts([], "facts tiles speed");
    return h("div", { className: "stage" }, this.screens.node, this.#buttons(), this.words, this.refusals, this.speed,
      this.screens.compared);
  }

  #buttons() {
    this.go = button("Drive", () => this.toggle(), { className: "first", "aria-keyshortcuts": "Space" });
    this.back = button("Rewind 1\u202fs", () => this.rewind(), { "aria-keyshortcuts": "z" });
    this.branch = button("Branch here", () => this.fork(), { "aria-keyshortcuts": "b" });
    this.anew = button("Start over", () => this.restart());
    return h("div", { className: "actions" }, this.go, this.back, this.branch, this.anew);
  }

  #listen() {
    this.panel.addEventListener("click", (event) => handKeysBack(event));
    addEventListener("keydown", (event) => this.#key(event, true));
    addEventListener("keyup", (event) => this.#key(event, false));
    addEventListener("blur", () => this.joints.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.pause());
    addEventListener("gamepadconnected", ({ gamepad }) => (this.#tell(`Gamepad: ${gamepad.id}`), this.#feel()));
  }

  /** Show the clips that come with the model, and stand at the end of the first one's context. */
  async listClips() {
    this.clips.append(await clipChoice(this.model, "drive-clip", (index) => {
      this.clip = index;
      return this.restart();
    }));
  }

  get current() {
    return this.branches[this.chosen];
  }

  /** Begin again from the clip; both branches end. */
  restart() {
    return this.#act(async () => {
      const started = await Branch.start(this.model, this.clip, numberIn(this.seed));
      for (const branch of this.branches) branch.end();
      this.branches = [started];
      this.chosen = 0;
      this.pace.inputs = [];
      this.#stand(0);
      this.#tell("Ready. Press Drive, or the space bar.");
    });
  }

  /** Drive, or pause. A drive goes on from the frame that is looked at. */
  toggle() {
    return this.running ? this.pause() : this.drive();
  }

  /** Show frame after frame until somebody pauses. */
  async drive() {
    await this.#acting;
    if (this.running || !this.current) return;
    clearRefusals(this.form, this.refusals);
    this.#tell("");
    this.stopping = new AbortController();
    this.#lastInput = performance.now();
    this.current.isLogged = true;
    this.running = this.#run(this.stopping.signal);
    this.#showRunning();
    await this.running;
  }

  /** Stop after the frame that is being made. */
  async pause() {
    this.stopping?.abort();
    await this.running;
  }

  /** Go back to the frame that is looked at, or else by a second. */
  rewind() {
    return this.#act(async () => {
      const end = this.current.length;
      const at = this.screens.at < end ? this.screens.at : Math.max(0, end - Math.round(this.model.fps));
      await this.current.rewind(at);
      this.#stand(at);
    });
  }

  /** Go on from the frame that is looked at in another branch; this one stays to be compared. */
  fork() {
    return this.#act(() => this.#fork());
  }

  async #fork() {
    const at = Math.min(this.screens.at, this.current.length);
    const other = 1 - this.chosen;
    const made = await this.current.fork(at);
    this.branches[other]?.end();
    this.branches[other] = made;
    this.chosen = other;
    this.forkedAt = at;
    this.legend.open = false;
    this.#stand(at);
    this.#tell(`Branch ${"AB"[other]} goes on from here.`);
  }

  /** Pause, do something to the branches, tell what is refused, and drive on where somebody drove; in turns. */
  #act(change) {
    this.#acting = this.#acting.then(() => this.#change(change));
    return this.#acting;
  }

  async #change(change) {
    const wasRunning = this.running !== null;
    await this.pause();
    clearRefusals(this.form, this.refusals);
    try {
      await change();
    } catch (error) {
      showRefusal(this.form, this.refusals, error);
      return;
    }
    if (wasRunning) this.drive();
  }

  async #run(signal) {
    try {
      if (this.screens.at < this.current.length) await this.current.rewind(this.screens.at);
      while (!signal.aborted) await this.#frameInTime(signal);
    } catch (error) {
      if (error.name !== "AbortError") showRefusal(this.form, this.refusals, error);
    }
    this.running = null;
    this.pace.rest();
    this.#showRunning();
    this.screens.settle();
  }

  /** One frame, and the wait until the next is due. */
  async #frameInTime(signal) {
    const began = performance.now();
    await this.#frame(signal);
    this.#pauseWhereDone();
    await until(began + 1000 / this.model.fps);
  }

  /** Make and show one frame. A lost server is waited for, with the same row. */
  async #frame(signal) {
    this.joints.feel(this.#pad());
    const touched = this.pace.take();
    const row = this.joints.next();
    const sampling = this.#sampling();
    const began = performance.now();
    const reply = await this.#stepPatiently(row, sampling, signal);
    const time = await this.#show();
    this.effort.learn(time - began);
    this.pace.note(time, touched, reply.timings_ms.total);
    this.#tellSpeed(reply.ensemble);
  }

  async #stepPatiently(row, sampling, signal) {
    for (;;) {
      try {
        return await this.current.step(row, sampling, Number(this.window.value));
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        signal.throwIfAborted();
        this.#tell("Lost the server. The drive goes on as soon as it answers.");
        await connection.untilUp(signal);
        this.#tell("The server is back.");
      }
    }
  }

  #sampling() {
    const way = this.way.value;
    if (way === "posterior_mean") return { strategy: way };
    return { strategy: "sample", steps: way === "auto" ? this.effort.steps : Number(way) };
  }

  #show() {
    this.screens.show(this.branches, this.chosen, this.current.length, this.forkedAt);
    return shown();
  }

  #pauseWhereDone() {
    if (this.current.isFull) this.#tell("This drive is as long as the page can hold. Rewind, or start over.");
    else if (performance.now() - this.#lastInput > IDLE_MS) this.#tell("Paused: nothing was moved for a minute.");
    else return;
    this.stopping.abort();
  }

  /** Stand at a frame of the chosen branch, with the robot as it is there. */
  #stand(at) {
    this.joints.set(this.current.rowAt(at));
    this.joints.release();
    if (this.branches.length < 2) this.forkedAt = null;
    this.screens.show(this.branches, this.chosen, at, this.forkedAt);
    this.#showRunning();
    this.screens.settle();
  }

  async #look(at) {
    await this.pause();
    this.joints.set(this.current.rowAt(Math.min(at, this.current.length)));
    this.screens.show(this.branches, this.chosen, at, this.forkedAt);
    this.#showRunning();
  }

  #choose(index) {
    if (index === this.chosen || !this.branches[index]) return undefined;
    return this.#act(async () => {
      this.chosen = index;
      this.#stand(this.current.length);
    });
  }

  #showRunning() {
    const isPast = this.current && this.screens.at < this.current.length;
    this.go.textContent = this.running ? "Pause" : isPast ? "Rewind and drive" : "Drive";
    this.back.textContent = isPast && !this.running ? "Rewind to here" : "Rewind 1\u202fs";
    this.panel.dataset.running = String(this.running !== null);
  }

  #touch(time) {
    this.#lastInput = performance.now();
    if (this.running) this.pace.touch(time);
  }

  #key(event, isDown) {
    if (this.panel.hidden || event.ctrlKey || event.metaKey || event.altKey || (isDown && isTyping(event))) return;
    const key = event.key.toLowerCase();
    if (this.joints.press(key, isDown, event.timeStamp)) event.preventDefault();
    else if (isDown && !event.repeat) this.#command(event, key);
  }

  #command(event, key) {
    if (key === " " && event.target.closest?.("button, summary, a, input[type=radio]")) return;
    const act = this.#acts[key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  get #acts() {
    return { " ": () => this.toggle(), z: () => this.rewind(), b: () => this.fork(), x: () => this.#swapArm(),
      1: () => this.#choose(0), 2: () => this.#choose(1) };
  }

  #swapArm() {
    this.joints.choose(this.joints.arm === "left" ? "right" : "left");
    announce(`Keys move the ${this.joints.arm} arm.`);
  }

  #pad() {
    return navigator.getGamepads?.().find((pad) => pad?.connected) ?? null;
  }

  /** Feel a gamepad's buttons as long as there is one and somebody looks. */
  #feel() {
    const pad = this.#pad();
    if (pad === null) return;
    if (!this.panel.hidden) this.#feelButtons(pad);
    requestAnimationFrame(() => this.#feel());
  }

  #feelButtons(pad) {
    if (this.running) this.joints.feel(pad);
    for (const [index, name] of PAD_BUTTONS) {
      const isDown = pad.buttons[index]?.pressed ?? false;
      if (isDown && !this.#pressed.has(index)) this.#padCommand(name);
      this.#pressed[isDown ? "add" : "delete"](index);
    }
  }

  #padCommand(name) {
    if (name === "left" || name === "right") this.joints.choose(name);
    else this[name]();
  }

  #tell(words) {
    this.words.textContent = words;
  }

  #tellSpeed({ strategy, steps }) {
    const now = performance.now();
    if (now - this.#lastTold < TELL_MS) return;
    this.#lastTold = now;
    const { inputs, rate, serverMs } = this.pace;
    this.speed.replaceChildren(...facts([
      ["frames a second", quantity(rate)],
      ["input to frame", quantity(inputs.at(-1), "ms")],
      ["95\u202f% within", quantity(quantile(inputs, 0.95), "ms")],
      ["server", quantity(serverMs, "ms")],
      ["a frame is", strategy === "sample" ? `a sample, ${stepsOf(steps)}` : "the posterior mean"],
      ["from one context", framesOf(Number(this.window.value))],
    ]).children);
  }
}

/** Whoever clicked goes on with the keys: the space bar drives then, and does not press the button again. */
function handKeysBack(event) {
  if (event.detail > 0) event.target.closest("button, summary")?.blur();
}

const isTyping = ({ target }) => target.closest?.("select, textarea, input:not([type=range], [type=radio])") ?? null;

const stepsOf = (count) => `${count} ${count === 1 ? "step" : "steps"}`;

const framesOf = (count) => `${count} ${count === 1 ? "frame" : "frames"}`;

/** A count, its half, the half of that, down to 1. */
function halvesOf(count) {
  const times = Math.floor(Math.log2(count)) + 1;
  return Array.from({ length: times }, (_, index) => Math.floor(count / 2 ** index));
}

function keyLegend() {
  const rows = KEYS.map(([keys, words]) =>
    h("div", {}, h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, words)));
  return h("details", { className: "legend-keys", open: matchMedia("(min-width: 60rem)").matches },
    h("summary", {}, "Keys and gamepad"), h("dl", { className: "facts" }, rows),
    h("p", { className: "hint" }, PAD_WORDS));
}

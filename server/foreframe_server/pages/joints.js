// A robot's numbers under somebody's hands: a slider each, keys and a gamepad, and how fast they may move.
// Knows a state schema and no server.

import { h } from "./ui.js";

const FULL_RANGE_S = 1.2;
const DEAD_ZONE = 0.15;

/** [title, which names]; a number belongs to the first group that takes it. */
const GROUPS = [
  ["Base", /VELOCITY|^BASE|^DRIVE/],
  ["Neck and head", /NECK|HEAD/],
  ["Left arm", /^LEFT|^L_/],
  ["Right arm", /^RIGHT|^R_/],
  ["Body", /HIP|KNEE|ANKLE|TORSO|WAIST/],
  ["Numbers", /./],
];

/** What moves a number down and up: keys, and of a gamepad an axis (turned where up is negative) or two buttons. */
const BINDINGS = [
  { name: /LINEAR_VELOCITY/, keys: ["s", "w"], axis: 1, turned: true },
  { name: /ANGULAR_VELOCITY/, keys: ["d", "a"], axis: 0, turned: true },
  { name: /NECK_PITCH|HEAD_PITCH/, keys: ["r", "f"], buttons: [12, 13] },
  { name: /SHOULDER_PITCH/, keys: ["i", "k"], axis: 3 },
  { name: /SHOULDER_YAW/, keys: ["j", "l"], axis: 2 },
  { name: /ELBOW_PITCH/, keys: ["u", "o"], buttons: [14, 15] },
  { name: /WRIST_PITCH/, keys: ["y", "h"] },
  { name: /HAND_CLOSURE|GRIPPER/, keys: ["n", "m"], buttons: [6, 7] },
];
const ANY_KEYS = [["s", "w"], ["d", "a"], ["k", "i"], ["j", "l"], ["u", "o"], ["n", "m"]];
const SIDES = { left: /^(LEFT|L_)/, right: /^(RIGHT|R_)/ };

/** The numbers, where they are to go and where they are. `onInput(time)` hears of everything that somebody does. */
export class Joints {
  arm = "right";
  #held = new Set();
  #pad = new Map();

  constructor(schema, fps, onInput) {
    this.fps = fps;
    this.onInput = onInput;
    this.all = schema.names.map((name, index) => new Joint(schema, index, () => onInput(performance.now())));
    this.#bind();
    this.groups = GROUPS.map((group, at) => this.#group(group, at));
    this.node = h("div", { className: "joints" }, this.#armChoice(), this.groups);
    this.#showArm();
  }

  /** Be where a row of numbers is, at rest. */
  set(row) {
    this.all.forEach((joint, index) => joint.set(row[index]));
  }

  /** Move on by one frame and return the row: towards the sliders, at most a full range in FULL_RANGE_S. */
  next() {
    const share = 1 / (FULL_RANGE_S * this.fps);
    for (const joint of this.all) joint.move(share, this.#push(joint));
    return this.all.map((joint) => joint.value);
  }

  /** Press or release a key. Returns whether it moves something. */
  press(key, isDown, time) {
    const isOurs = this.all.some((joint) => joint.keys.includes(key) && this.#isChosen(joint));
    if (!isOurs && isDown) return false;
    if (isDown !== this.#held.has(key)) {
      this.#held[isDown ? "add" : "delete"](key);
      if (isOurs) this.onInput(time);
    }
    return isOurs;
  }

  /** Let go of everything. */
  release() {
    this.#held.clear();
    this.#pad.clear();
  }

  /** Take what a gamepad says, or null where there is none. */
  feel(pad) {
    const before = JSON.stringify([...this.#pad]);
    const pushes = pad ? this.all.map((joint, index) => [index, joint.feel(pad)]) : [];
    this.#pad = new Map(pushes.filter(([, push]) => push !== 0));
    if (JSON.stringify([...this.#pad]) !== before) this.onInput(performance.now());
  }

  /** Choose which arm keys and gamepad move. */
  choose(arm) {
    this.arm = arm;
    this.#showArm();
  }

  #push(joint) {
    if (!this.#isChosen(joint)) return 0;
    const [down, up] = joint.keys.map((key) => this.#held.has(key));
    const keys = Number(Boolean(up)) - Number(Boolean(down));
    return keys || (this.#pad.get(joint.index) ?? 0);
  }

  #isChosen(joint) {
    return !joint.side || joint.side === this.arm;
  }

  #bind() {
    for (const binding of BINDINGS) {
      for (const joint of this.all.filter(({ name }) => binding.name.test(name))) joint.bind(binding);
    }
    if (this.all.every((joint) => joint.keys.length === 0)) {
      ANY_KEYS.forEach((keys, index) => this.all[index]?.bind({ keys, axis: index < 4 ? index : undefined }));
    }
  }

  #group([title], at) {
    const own = this.all.filter(({ name }) => GROUPS.findIndex(([, pattern]) => pattern.test(name)) === at);
    if (own.length === 0) return null;
    return h("details", { className: "joint-group", open: /Base|Neck|Numbers/.test(title) },
      h("summary", {}, title), own.map((joint) => joint.node));
  }

  #armChoice() {
    this.choice = h("p", { className: "hint", hidden: !this.all.some((joint) => joint.side && joint.keys.length) });
    return this.choice;
  }

  #showArm() {
    for (const joint of this.all) joint.mark(joint.keys.length > 0 && this.#isChosen(joint));
    const isRoomy = matchMedia("(min-width: 60rem)").matches;
    const isOurs = (group) => group?.textContent.toLowerCase().startsWith(`${this.arm} arm`);
    for (const group of this.groups) if (isRoomy && isOurs(group)) group.open = true;
    this.choice.replaceChildren("Keys and gamepad move the ", h("strong", {}, `${this.arm} arm`), "; ",
      h("kbd", {}, "x"), " changes over.");
  }
}

/** One number: its slider, its range, where it is. */
class Joint {
  keys = [];

  constructor(schema, index, onInput) {
    Object.assign(this, { index, name: schema.names[index], unit: schema.units[index], ...rangeOf(schema, index) });
    this.side = Object.keys(SIDES).find((side) => SIDES[side].test(this.name)) ?? null;
    this.isRate = this.unit.endsWith("/s");
    this.words = wordsOf(this.name);
    this.decimals = Math.min(3, Math.max(0, 2 - Math.floor(Math.log10(this.high - this.low))));
    this.#make(onInput);
    this.set(schema.mean?.[index] ?? 0);
  }

  #make(onInput) {
    const step = (this.high - this.low) / 400;
    this.slider = h("input", { type: "range", id: `joint-${this.index}`, min: this.low, max: this.high, step,
      oninput: () => ((this.target = Number(this.slider.value)), onInput()) });
    const ends = this.isRate ? ["pointerup", "pointercancel"] : [];
    for (const end of ends) this.slider.addEventListener(end, () => this.rest());
    this.told = h("output", { htmlFor: this.slider.id });
    this.hints = h("span", { className: "keys", "aria-hidden": "true" });
    const label = h("label", { htmlFor: this.slider.id }, this.words, this.hints);
    this.node = h("div", { className: "joint" }, label, this.slider, this.told);
  }

  bind({ keys, axis, turned = false, buttons }) {
    Object.assign(this, { keys, axis, turned, buttons });
    this.slider.setAttribute("aria-keyshortcuts", keys.join(" "));
    this.hints.replaceChildren(...keys.map((key) => h("kbd", {}, key)));
  }

  mark(isLive) {
    this.hints.hidden = !isLive;
  }

  set(value) {
    this.low = Math.min(this.low, value);
    this.high = Math.max(this.high, value);
    Object.assign(this.slider, { min: this.low, max: this.high });
    this.value = this.target = value;
    this.#show();
  }

  /** Let go: a rate ends. */
  rest() {
    this.target = Math.min(this.high, Math.max(this.low, 0));
  }

  move(share, push) {
    const most = share * (this.high - this.low);
    if (push !== 0) this.target = this.isRate ? (push > 0 ? this.high : -this.low) * push : this.value + push * most;
    else if (this.isPushed) this.isRate ? this.rest() : (this.target = this.value);
    this.isPushed = push !== 0;
    this.target = Math.min(this.high, Math.max(this.low, this.target));
    const reach = this.isRate ? 3 * most : most;
    this.value += Math.max(-reach, Math.min(reach, this.target - this.value));
    this.#show();
  }

  /** Push -1..1 of a gamepad. */
  feel({ axes, buttons }) {
    const stick = axes[this.axis] ?? 0;
    const pressed = (index) => buttons[index]?.value ?? 0;
    const pull = this.buttons ? pressed(this.buttons[1]) - pressed(this.buttons[0]) : 0;
    const push = (this.turned ? -stick : stick) || pull;
    return Math.abs(push) < DEAD_ZONE ? 0 : Math.round(push * 20) / 20;
  }

  #show() {
    this.slider.value = String(this.target);
    const number = this.value.toFixed(this.decimals).replace(/^-(0\.?0*)$/, "$1");
    const text = this.unit === "1" ? number : `${number}\u202f${this.unit}`;
    if (this.told.textContent === text) return;
    this.told.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }
}

function rangeOf({ low, high, mean, std }, index) {
  if (low && high && high[index] > low[index]) return { low: low[index], high: high[index] };
  if (mean && std) return { low: mean[index] - 3 * std[index], high: mean[index] + 3 * std[index] };
  return { low: -1, high: 1 };
}

/** "LEFT_SHOULDER_PITCH" in a group that says left: "Shoulder pitch". */
function wordsOf(name) {
  const text = name.replace(/^(LEFT|RIGHT)_/, "").replaceAll("_", " ").toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

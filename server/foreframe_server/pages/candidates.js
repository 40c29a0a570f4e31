// Candidates: plans around a base, a goal picture, and what each plan costs; a table to sort and frames to look at.

import { post } from "./api.js";
import { clipChoice } from "./clips.js";
import { bestEncoding, draw } from "./frames.js";
import { sample } from "./plans.js";
import { Ranking } from "./ranking.js";
import { readClip } from "./recording.js";
import { alertPlace, announce, button, clearRefusals, field, h, input, numberIn, quantity, say, select,
  showRefusal } from "./ui.js";

const MOVING = {
  all: ["Every number", () => true],
  arms: ["Arms and hands", (name) => /^(LEFT|RIGHT)_/.test(name)],
  left: ["Left arm and hand", (name) => name.startsWith("LEFT_")],
  right: ["Right arm and hand", (name) => name.startsWith("RIGHT_")],
  rest: ["Neck, base and body", (name) => !/^(LEFT|RIGHT)_/.test(name)],
};
const MAX_PLANS = 4096;
const UNKNOWN_DEVIATION = 0.1;
const METRICS = [["pixel", "Pixels, mean squared error"], ["latent", "Latents, mean squared distance"],
  ["tokens", "Tokens, nats per token"]];
const BASES = [["still", "Holding still"], ["onward", "Going on as it moved"], ["filmed", "What the robot did"]];
const TERMS = { goal_image: "the goal", spread: "spread", smoothness: "jerkiness", likelihood: "doubt" };

/** Fill the panel. */
export async function mount(panel, context) {
  const page = new Candidates(panel, context);
  await page.listClips();
}

class Candidates {
  constructor(panel, { model, schema }) {
    Object.assign(this, { model, schema });
    this.ranking = new Ranking(model);
    this.refusals = alertPlace();
    this.clips = h("fieldset", {}, h("legend", {}, "Start from"));
    this.form = h("form", { className: "asking", noValidate: true }, this.clips, this.#plans(), this.#cost(),
      this.refusals, h("div", { className: "actions" }, this.#buttons()));
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.score()));
    const stage = h("div", { className: "stage" }, this.#goal(), this.ranking.node);
    panel.append(h("div", { className: "split goal-first" }, this.form, stage));
  }

  #plans() {
    this.base = select("plan-base", BASES);
    this.moving = select("plan-moving", this.#movable());
    this.count = number("plan-count", 16, { min: 1, max: 256 });
    this.deviation = number("plan-deviation", 0.3, { min: 0, step: "any" });
    this.smoothness = number("plan-smoothness", 0.8, { min: 0, max: 0.99, step: "any" });
    this.seed = number("plan-seed", 1, { min: 0 });
    return h("fieldset", {}, h("legend", {}, "Plans"), h("div", { className: "grid" },
      field("Around", this.base, { wide: true }),
      field("What moves", this.moving, { wide: true }),
      field("Plans", this.count, { pointers: ["/candidates"], hint: "The first is the base itself" }),
      field("Seed", this.seed, { pointers: ["/sampling/seed"], hint: "Of plans and members" }),
      field("Deviation", this.deviation, { hint: "1 is that of training" }),
      field("Smoothness", this.smoothness, { hint: "0 to 0.99, from row to row" })));
  }

  /** What may be chosen to move: what takes at least one number of the schema. */
  #movable() {
    return Object.entries(MOVING).filter(([, [, takes]]) => this.schema.names.some(takes))
      .map(([value, [words]]) => [value, words]);
  }

  #cost() {
    const { sampler, horizon } = this.model;
    this.weights = this.#weights();
    this.metric = select("goal-metric", this.model.tokens ? METRICS : METRICS.slice(0, 2));
    this.frame = number("goal-frame", horizon, { min: 1, max: horizon });
    this.members = number("score-members", 4, { min: 1, max: sampler.max_ensemble_size });
    this.steps = number("score-steps", 2, { min: 1, max: sampler.max_steps });
    this.shown = number("score-shown", 8, { min: 0, max: 64 });
    const fields = h("div", { className: "grid" },
      field("Goal in", this.metric, { wide: true, pointers: ["/objectives/0/params/metric"] }),
      this.#weightFields(),
      field("Goal at frame", this.frame, { pointers: ["/objectives/0/params/frame"] }),
      field("Members", this.members, { pointers: ["/ensemble", "/ensemble/size"] }),
      field("Steps", this.steps, { pointers: ["/sampling/steps"] }),
      field("Show the best", this.shown, { pointers: ["/return/top_n"] }));
    const isRoomy = matchMedia("(min-width: 60rem)").matches;
    return h("details", { className: "settings", open: isRoomy }, h("summary", {}, "Cost"), fields);
  }

  #weights() {
    const weight = (name, value) => number(`weight-${name}`, value, { step: "any" });
    return { goal_image: weight("goal_image", 1), spread: weight("spread", 0), smoothness: weight("smoothness", 0.001),
      ...(this.model.tokens && { likelihood: weight("likelihood", 0) }) };
  }

  #weightFields() {
    return Object.entries(this.weights).map(([kind, control], at) =>
      field(`Weight of ${TERMS[kind]}`, control, { pointers: at === 0 ? ["/objectives"] : [] }));
  }

  #buttons() {
    this.go = h("button", { type: "submit", className: "first" }, "Score");
    this.stop = button("Stop", () => this.busy?.abort(), { hidden: true });
    return [this.go, this.stop];
  }

  #goal() {
    this.frames = h("div", { className: "film goal-frames", role: "radiogroup", "aria-label": "Goal picture" });
    this.told = h("p", { className: "hint" });
    return h("section", {}, h("h2", {}, "Goal: click a frame of the clip"), this.frames, this.told);
  }

  /** Show the clips that come with the model and choose the first. */
  async listClips() {
    this.clips.append(await clipChoice(this.model, "candidates-clip", (index) => this.#choose(index)));
  }

  async #choose(index) {
    clearRefusals(this.form, this.refusals);
    try {
      this.recording = await readClip(this.model, index);
      this.window = this.recording.window(this.model, 0);
      this.#showFrames();
      this.ranking.forget();
    } catch (error) {
      showRefusal(this.form, this.refusals, error);
    }
  }

  #showFrames() {
    const images = [...this.window.past, ...this.window.truth];
    this.goal = images.length - 1;
    this.frames.style.setProperty("--count", String(images.length));
    this.frames.replaceChildren(...images.map((image, at) => this.#frameChoice(image, at)));
    this.#tellGoal();
  }

  #frameChoice(image, at) {
    const canvas = h("canvas", { width: image.width, height: image.height, "aria-hidden": "true" });
    draw(canvas, image);
    const index = at + 1 - this.window.past.length;
    const choice = h("input", { type: "radio", name: "goal", value: at, checked: at === this.goal,
      onchange: () => this.#chooseGoal(at) });
    const words = index > 0 ? "frame that happened later" : "frame that was seen";
    return h("label", { className: "cell" }, choice, canvas, h("span", {}, String(index)),
      h("span", { className: "unseen" }, words));
  }

  #chooseGoal(at) {
    this.goal = at;
    this.#tellGoal();
  }

  #tellGoal() {
    const index = this.goal + 1 - this.window.past.length;
    const later = quantity(index / this.model.fps, "s");
    this.told.textContent = index > 0 ? `Frame ${index} is what really happened ${later} after the last frame seen.`
      : "A frame that was seen: back to how it was.";
  }

  get #goalImage() {
    return [...this.window.past, ...this.window.truth][this.goal];
  }

  /** The rows that plans are made around. */
  #baseRows() {
    const { pastStates: { values: past }, futureStates: { values: future } } = this.window;
    const [before, last] = past.slice(-2);
    const times = Array.from({ length: this.model.horizon }, (_, index) => index + 1);
    if (this.base.value === "still") return times.map(() => last);
    if (this.base.value === "onward") return times.map((time) => onward(before, last, time));
    return future;
  }

  #plansNow() {
    const { low, high } = this.schema;
    return sample(this.#baseRows(), { count: numberIn(this.count), seed: numberIn(this.seed) ?? 0,
      smoothness: numberIn(this.smoothness), low, high, deviations: this.#deviations() });
  }

  /** How far each number may move from row to row, 0 for those that shall not. */
  #deviations() {
    const { names, std } = this.schema;
    const [, takes] = MOVING[this.moving.value];
    const scale = numberIn(this.deviation);
    return names.map((name, index) => (takes(name) ? scale * (std?.[index] ?? UNKNOWN_DEVIATION) : 0));
  }

  #objectives() {
    const goal = { image: this.#goalPicture(), metric: this.metric.value, ...maybe("frame", this.frame) };
    return Object.entries(this.weights).map(([kind, control]) => [kind, numberIn(control) ?? 0])
      .filter(([, weight]) => weight !== 0)
      .map(([kind, weight]) => ({ kind, weight, ...(kind === "goal_image" && { params: goal }) }));
  }

  #goalPicture() {
    const { encoding, frames: [data], width, height } = this.recording.clip(this.goal, this.goal + 1);
    return { encoding, data, ...(width && { width, height }) };
  }

  #request(plans) {
    const count = numberIn(this.shown) ?? 0;
    const camera = this.model.cameras[0];
    const clip = this.recording.clip(0, this.window.split);
    return {
      model: this.model.id,
      observation: { cameras: { [camera.name]: clip }, state: this.window.pastStates },
      candidates: { values: plans },
      objectives: this.#objectives(),
      ensemble: { ...maybe("size", this.members) },
      sampling: { ...maybe("steps", this.steps), ...maybe("seed", this.seed) },
      return: { top_n: Math.min(count, plans.length), frames: count > 0 ? "all" : "none",
        encoding: bestEncoding(camera) },
    };
  }

  /** Say what plans cannot be made of, beside its field. Returns whether there is nothing to say. */
  #canSample() {
    const bounds = [[this.count, 1, MAX_PLANS, "plans"], [this.deviation, 0, 100, "deviations"],
      [this.smoothness, 0, 0.99, "for a correlation"]];
    const wrong = bounds.filter(([control, least, most]) => !isWithin(numberIn(control), least, most));
    for (const [control, least, most, words] of wrong) say(control, `${least} to ${most} ${words}.`);
    wrong[0]?.[0].focus();
    return wrong.length === 0;
  }

  /** Ask what each plan costs, and show it; what is refused is told beside its field. */
  async score() {
    clearRefusals(this.form, this.refusals);
    if (!this.window || !this.#canSample()) return;
    this.busy?.abort();
    const stop = new AbortController();
    this.busy = stop;
    const plans = this.#plansNow();
    this.#showBusy(`${plans.length} plans are predicted and compared.`);
    try {
      const reply = await post("/v1/scores", this.#request(plans), { binary: true, signal: stop.signal });
      await this.ranking.show(reply, plans, { goal: this.#goalImage });
      this.ranking.chosen.scrollIntoView({ block: "nearest" });
      announce(`Plan ${reply.best_index} is the best.`);
    } catch (error) {
      if (error.name !== "AbortError") showRefusal(this.form, this.refusals, error);
    } finally {
      if (this.busy === stop) this.#showBusy("");
    }
  }

  #showBusy(words) {
    this.go.disabled = this.form.ariaBusy = Boolean(words);
    this.stop.hidden = !words;
    this.ranking.tell(words);
    if (words) this.ranking.node.scrollIntoView({ block: "nearest" });
  }
}

const number = (name, value, properties) => input(name, { type: "number", value, ...properties });

const isWithin = (value, least, most) => value !== null && value >= least && value <= most;

/** A number of a request under its name, or nothing where its field is empty. */
function maybe(name, control) {
  const value = numberIn(control);
  return value === null ? {} : { [name]: value };
}

/** The row that is reached after a time, in rows, by who goes on as between two rows. */
const onward = (before, last, time) => last.map((value, index) => value + time * (value - before[index]));

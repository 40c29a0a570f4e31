// Candidates: plans around a base, a goal picture, and what each plan costs; a table to sort and frames to look at.

import { post } from "./api.js";
import { clipChoice } from "./clips.js";
import { bestEncoding, draw } from "./frames.js";
import { sample } from "./plans.js";
import { Ranking } from "./ranking.js";
import { readClip } from "./recording.js";
import { alertPlace, announce, button, clearRefusals, field, h, input, numberIn, quantity, say, select, showRefusal } from "./ui.js";

const MOVING = {
  all: ["Every number", () => true],
  arms: ["Arms and hands", (name) => /^(LEFT|RIGHT)_/.test(name)],
  left: ["Left arm and hand", (name) => name.startsWith("LEFT_")],
  right: ["Right arm and hand", (name) => name.startsWith("RIGHT_")],
  rest: ["Neck, base and body", (name) => !/^(LEFT|RIGHT)_/.test(name)],
};
const MAX_PLANS = 4096;
const METRICS = [["pixel", "Pixels, mean squared error"], ["latent", "Latents, mean squared distance"], ["tokens", "Tokens, nats per token"]];

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
    this.form = h("form", { className: "asking", noValidate: true, onsubmit: (event) => (event.preventDefault(), this.score()) }, this.clips, this.#plans(),
      this.#cost(), this.refusals, h("div", { className: "actions" }, this.#buttons()));
    panel.append(h("div", { className: "split goal-first" }, this.form, h("div", { className: "stage" }, this.#goal(), this.ranking.node)));
  }

  #plans() {
    const number = (name, value, properties) => input(name, { type: "number", value, ...properties });
    this.base = select("plan-base", [["still", "Holding still"], ["onward", "Going on as it moved"],
      ["filmed", "What the robot did"]]);
    this.moving = select("plan-moving", Object.entries(MOVING).filter(([, [, takes]]) => this.schema.names.some(takes))
      .map(([value, [words]]) => [value, words]));
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

  #cost() {
    const weight = (name, value) => input(`weight-${name}`, { type: "number", step: "any", value });
    this.weights = { goal_image: weight("goal_image", 1), spread: weight("spread", 0), smoothness: weight("smoothness", 0.001),
      ...(this.model.tokens && { likelihood: weight("likelihood", 0) }) };
    this.metric = select("goal-metric", this.model.tokens ? METRICS : METRICS.slice(0, 2));
    this.frame = input("goal-frame", { type: "number", min: 1, max: this.model.horizon, value: this.model.horizon });
    this.members = input("score-members", { type: "number", min: 1, max: this.model.sampler.max_ensemble_size, value: 4 });
    this.steps = input("score-steps", { type: "number", min: 1, max: this.model.sampler.max_steps, value: 2 });
    this.shown = input("score-shown", { type: "number", min: 0, max: 64, value: 8 });
    const words = { goal_image: "the goal", spread: "spread", smoothness: "jerkiness", likelihood: "doubt" };
    return h("details", { className: "settings", open: matchMedia("(min-width: 60rem)").matches }, h("summary", {}, "Cost"), h("div", { className: "grid" },
      field("Goal in", this.metric, { wide: true, pointers: ["/objectives/0/params/metric"] }),
      Object.entries(this.weights).map(([kind, control], at) => field(`Weight of ${words[kind]}`, control, { pointers: at === 0 ? ["/objectives"] : [] })),
      field("Goal at frame", this.frame, { pointers: ["/objectives/0/params/frame"] }),
      field("Members", this.members, { pointers: ["/ensemble", "/ensemble/size"] }),
      field("Steps", this.steps, { pointers: ["/sampling/steps"] }),
      field("Show the best", this.shown, { pointers: ["/return/top_n"] })));
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
      onchange: () => ((this.goal = at), this.#tellGoal()) });
    return h("label", { className: "cell" }, choice, canvas, h("span", {}, String(index)), h("span", { className: "unseen" },
      index > 0 ? "frame that happened later" : "frame that was seen"));
  }

  #tellGoal() {
    const index = this.goal + 1 - this.window.past.length;
    this.told.textContent = index > 0 ? `Frame ${index} is what really happened ${quantity(index / this.model.fps, "s")} after the last frame seen.`
      : "A frame that was seen: back to how it was.";
  }

  get #goalImage() {
    return [...this.window.past, ...this.window.truth][this.goal];
  }

  /** The rows that plans are made around. */
  #baseRows() {
    const { pastStates: { values: past }, futureStates: { values: future } } = this.window;
    const [before, last] = past.slice(-2);
    const rows = Array.from({ length: this.model.horizon }, (_, at) => at + 1);
    if (this.base.value === "still") return rows.map(() => last);
    if (this.base.value === "onward") return rows.map((at) => last.map((value, index) => value + at * (value - before[index])));
    return future;
  }

  #plansNow() {
    const { names, std, low, high } = this.schema;
    const [, takes] = MOVING[this.moving.value];
    const scale = numberIn(this.deviation);
    return sample(this.#baseRows(), { count: numberIn(this.count), seed: numberIn(this.seed) ?? 0, smoothness: numberIn(this.smoothness), low, high,
      deviations: names.map((name, index) => (takes(name) ? scale * (std?.[index] ?? 0.1) : 0)) });
  }

  #objectives() {
    const goal = { image: this.#goalPicture(), metric: this.metric.value, ...this.#maybe("frame", this.frame) };
    return Object.entries(this.weights).map(([kind, control]) => ({ kind, weight: numberIn(control) ?? 0, ...(kind === "goal_image" && { params: goal }) }))
      .filter(({ weight }) => weight !== 0);
  }

  #goalPicture() {
    const { encoding, frames: [data], width, height } = this.recording.clip(this.goal, this.goal + 1);
    return { encoding, data, ...(width && { width, height }) };
  }

  #maybe(name, control) {
    const value = numberIn(control);
    return value === null ? {} : { [name]: value };
  }

  #request(plans) {
    const count = numberIn(this.shown) ?? 0;
    return {
      model: this.model.id,
      observation: { cameras: { [this.model.cameras[0].name]: this.recording.clip(0, this.window.split) }, state: this.window.pastStates },
      candidates: { values: plans },
      objectives: this.#objectives(),
      ensemble: { ...this.#maybe("size", this.members) },
      sampling: { ...this.#maybe("steps", this.steps), ...this.#maybe("seed", this.seed) },
      return: { top_n: Math.min(count, plans.length), frames: count > 0 ? "all" : "none", encoding: bestEncoding(this.model.cameras[0]) },
    };
  }

  /** Say what plans cannot be made of, beside its field. Returns whether there is nothing to say. */
  #canSample() {
    const bounds = [[this.count, 1, MAX_PLANS, "plans"], [this.deviation, 0, 100, "deviations"], [this.smoothness, 0, 0.99, "for a correlation"]];
    const wrong = bounds.filter(([control, least, most]) => !(numberIn(control) !== null && numberIn(control) >= least && numberIn(control) <= most));
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

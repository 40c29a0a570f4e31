// What a prediction looks like: past, prediction and truth side by side, one scrubber, and charts under it.

import { usualError, usualSpread, verdictMark, verdictWords } from "./calibration.js";
import { Chart } from "./chart.js";
import { clear, decibels, draw, rmse } from "./frames.js";
import { button, facts, field, h, input, quantity, select, warningList } from "./ui.js";

const PLAY_MS = 200;
const SPREAD_HEIGHT = 168;

/** Draws one window and its prediction; asks nobody, but calls `onMedoid` for the medoid's frames. */
export class Stage {
  onMedoid = async () => [];
  past = [];
  truth = [];
  at = 0;

  constructor(model) {
    this.model = model;
    this.panes = Object.fromEntries([["past", "Past"], ["predicted", "Predicted"], ["truth", "Truth"]]
      .map(([name, title]) => [name, pane(title, model.cameras[0])]));
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Members that arrived" });
    this.words = h("p", { className: "hint", role: "status" });
    const onPick = (frame) => this.go(frame);
    this.spread = new Chart("Spread and error", "root mean square, white is 1", { onPick, height: SPREAD_HEIGHT });
    this.bits = new Chart("Bits of the truth", "bits a frame", { onPick });
    this.bits.node.hidden = true;
    this.summary = h("div", { className: "summary" });
    this.strip = h("div", { className: "strip", "aria-hidden": "true" });
    this.node = h("div", { className: "stage" }, h("div", { className: "panes" },
        Object.values(this.panes).map((one) => one.node)),
      this.#scrubber(), this.#controls(), h("div", { className: "running" }, this.bar, this.words), this.strip,
      this.spread.node, this.bits.node, this.summary);
    this.#forget();
  }

  #scrubber() {
    this.scrub = h("input", { type: "range", id: "scrub", step: 1, oninput: () => this.go(Number(this.scrub.value)) });
    this.time = h("output", { htmlFor: "scrub" });
    this.play = button("Play", () => this.#toggle(), { title: "At a third of the robot's time",
        className: "plain play" });
    return h("div", { className: "scrubber" }, this.play,
        h("label", { htmlFor: "scrub", className: "unseen" }, "Frame"), this.scrub, this.time);
  }

  #controls() {
    this.choice = select("shown", [["mean", "Mean"]], { onchange: () => this.#choose() });
    this.opacity = input("opacity", { type: "range", min: 0, max: 100, value: 0, oninput: () => this.#overlay() });
    this.overlay = field("Variance overlay", this.opacity);
    this.smooth = input("smooth", { type: "checkbox", onchange: () => this.#soften() });
    this.#soften();
    return h("div", { className: "controls" }, field("Show", this.choice), this.overlay,
      field("Smooth pixels", this.smooth));
  }

  /** Bring the pictures into view, where they are not. */
  reveal() {
    this.node.firstChild.scrollIntoView({ block: "nearest" });
  }

  /** Show a window that nothing was predicted for yet. */
  open({ past, truth, futureStates }, recording) {
    Object.assign(this, { past, truth, horizon: Math.min(this.model.horizon, futureStates.values.length) });
    this.#forget();
    this.tell(recording.note || (futureStates.values.length ? ""
        : "No rows follow the context frames, so there is nothing to predict."));
    this.scrub.min = String(1 - past.length);
    this.scrub.max = String(this.horizon);
    this.go(0);
    this.#drawStrip();
  }

  /** Start over with the same window: what was predicted before stays until the first news. */
  begin() {
    this.answer = null;
    this.requested = null;
    this.choice.replaceChildren(h("option", { value: "mean" }, "Mean"));
    this.shown = "mean";
    this.#overlay([]);
    this.bits.node.hidden = true;
    this.summary.replaceChildren();
    this.bar.removeAttribute("value");
    this.bar.hidden = false;
    this.tell("Sent.");
  }

  /** Say how many members are whole. */
  progress(members, requested, words) {
    this.requested ??= requested;
    this.bar.max = this.requested;
    this.bar.value = members;
    this.tell([`${members} of ${this.requested} members`, words].filter(Boolean).join(" · "));
  }

  /** Show the answer as it stands. */
  update(frames, spread, words) {
    if (this.answer) return;
    this.frames.mean = frames;
    if (words) this.tell(words);
    if (this.at < 1) this.go(frames.length);
    this.#draw();
    this.#drawStrip();
    this.#showSpread(spread);
  }

  /** Show the whole answer. */
  async finish(answer, { frames, members, maps }) {
    this.answer = answer;
    this.frames = { mean: frames };
    members.forEach((member, index) => (this.frames[`member ${index + 1}`] = member));
    this.most = Math.max(1e-6, ...maps.map((map) => map.reduce((most, value) => Math.max(most, value), 0)));
    this.#overlay(maps);
    this.#offer(answer, members.length);
    this.bar.hidden = true;
    this.tell("");
    if (this.at < 1) this.go(1);
    this.#drawStrip();
    this.#showSpread(answer.uncertainty.spread_per_frame);
    this.summary.replaceChildren(summaryOf(answer), warningList(answer.warnings) ?? "");
  }

  /** Show the bits of what really happened, over those that are usual where the model is calibrated. */
  showBits(reply) {
    const usual = usualBits(reply.surprise_per_frame);
    this.bits.node.hidden = false;
    this.bits.show([{ name: "bits", kind: "bars", values: perFrame(reply) }], {
      ...(usual && { band: usual, bandWords: "usual on held-out clips" }),
      words: `${quantity(reply.bits_total, "bits")} in all, ${quantity(reply.bits_per_pixel, "bits")} a pixel` +
        surprising(reply),
    });
    this.bits.point(Math.max(1, this.at));
  }

  /** Nothing more will come. */
  stop(words) {
    this.bar.hidden = true;
    this.tell(words);
  }

  /** Say something beside the progress bar. */
  tell(words) {
    this.words.textContent = words;
  }

  /** Move to a frame: 1..horizon are predicted, 0 and below were seen. */
  go(index) {
    this.at = index;
    this.scrub.value = String(index);
    const seconds = index / this.model.fps;
    const when = `${seconds < 0 ? "−" : "+"}${Math.abs(seconds).toFixed(2)}\u202fs`;
    this.time.textContent = when;
    this.scrub.setAttribute("aria-valuetext", index > 0 ? `predicted frame ${index}, ${when}` : `seen, ${when}`);
    this.spread.point(Math.max(1, index));
    this.bits.point(Math.max(1, index));
    this.#draw();
    this.#markStrip();
  }

  #forget() {
    this.answer = null;
    this.frames = { mean: [] };
    this.shown = "mean";
    this.#overlay([]);
    this.bar.hidden = true;
    this.spread.node.hidden = this.bits.node.hidden = true;
    this.summary.replaceChildren();
    this.choice.replaceChildren(h("option", { value: "mean" }, "Mean"));
  }

  #offer(answer, count) {
    const many = answer.ensemble.strategy === "sample" && count > 1;
    const names = [["mean", many ? `Mean of ${count}` : answer.ensemble.strategy === "sample" ? "The only member"
        : "Posterior mean"],
      ...(many ? [["medoid", "Medoid"]] : []),
      ...(many ? Array.from({ length: count }, (_, index) => [`member ${index + 1}`, `Member ${index + 1}`]) : [])];
    this.choice.replaceChildren(...names.map(([value, words]) => h("option", { value }, words)));
  }

  async #choose() {
    const wanted = this.choice.value;
    if (!this.frames[wanted]) {
      this.tell("Asking for the medoid.");
      try {
        this.frames[wanted] = await this.onMedoid();
        this.tell("");
      } catch (error) {
        this.choice.value = this.shown;
        this.tell(error.message);
        return;
      }
    }
    this.shown = wanted;
    this.#draw();
    this.#drawStrip();
    this.#showSpread(this.answer.uncertainty.spread_per_frame);
  }

  /** Draw variance over the prediction, as strongly as asked for; where nothing varies there is nothing to ask. */
  #overlay(maps = this.maps) {
    this.maps = maps;
    this.opacity.disabled = maps.length === 0;
    this.overlay.firstChild.textContent = `Variance overlay, ${this.opacity.value}\u202f%`;
    this.#draw();
  }

  #soften() {
    for (const { canvas } of Object.values(this.panes)) canvas.classList.toggle("smooth", this.smooth.checked);
  }

  #draw() {
    const { past, predicted, truth } = this.panes;
    const seen = this.past[this.past.length - 1 + Math.min(0, this.at)];
    show(past, seen, seen ? `frame ${Math.min(0, this.at)}` : "");
    const frame = this.frames[this.shown]?.[this.at - 1];
    const map = this.maps[this.at - 1] ?? null;
    show(predicted, frame, this.at > 0 ? (frame ? `frame ${this.at}` : "not asked yet")
        : "the future starts at frame 1",
      { map, opacity: Number(this.opacity.value) / 100, most: this.most });
    const real = this.truth[this.at - 1];
    show(truth, real, real ? `frame ${this.at}` : this.at > 0 ? "not filmed" : "");
    if (frame && real) predicted.words.textContent += ` · ${quantity(decibels(rmse(frame, real)), "dB")} PSNR`;
  }

  #drawStrip() {
    const rows = [this.frames[this.shown] ?? [], this.truth];
    const seen = this.past.map((image, index) => this.#cell([image], index + 1 - this.past.length, "seen"));
    const ahead = Array.from({ length: this.horizon ?? 0 },
        (_, index) => this.#cell(rows.map((row) => row[index]), index + 1, "ahead"));
    const caption = h("p", { className: "hint" }, "Above predicted, below the truth.");
    caption.style.gridColumn = `1 / span ${Math.max(1, seen.length)}`;
    this.strip.replaceChildren(...seen, ...(this.truth.length ? [caption] : []), ...ahead);
    this.#markStrip();
  }

  #cell(images, index, kind) {
    const size = this.model.cameras[0];
    const cell = h("div", { className: `cell ${kind}`, onclick: () => this.go(index) }, h("span", {}, String(index)),
      images.map((image) => {
        const canvas = h("canvas", { width: size.width, height: size.height });
        if (image) draw(canvas, image);
        return canvas;
      }));
    cell.dataset.index = String(index);
    return cell;
  }

  #markStrip() {
    for (const cell of this.strip.querySelectorAll(".cell"))
      cell.classList.toggle("here", Number(cell.dataset.index) === this.at);
  }

  #showSpread(spread) {
    const uncertainty = this.answer?.uncertainty;
    this.spread.node.hidden = (this.frames[this.shown] ?? []).length === 0;
    this.spread.show(this.#spreadSeries(spread, uncertainty), { limit: uncertainty?.trusted_horizon,
      limitWords: "not trusted", words: uncertainty ? verdictWords(uncertainty) : "" });
    this.spread.point(Math.max(1, this.at));
  }

  /** What members and truth say, and what is usual; the usual error is the mean's, not that of one member. */
  #spreadSeries(spread, uncertainty) {
    const frames = this.frames[this.shown] ?? [];
    const errors = frames.map((frame, index) => (this.truth[index] ? rmse(frame, this.truth[index]) : null));
    const empty = Array.from({ length: this.horizon }, () => null);
    return [{ name: "members' spread", kind: "line", values: spread.length ? spread : empty },
      ...usualSpread(uncertainty),
      { name: "error against the truth", kind: "fact", values: errors.length ? errors : empty },
      ...(this.shown === "mean" ? usualError(uncertainty) : [])];
  }

  #toggle() {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = 0;
    } else this.timer = setInterval(() => this.go(this.at >= Number(this.scrub.max) ? Number(this.scrub.min)
        : this.at + 1), PLAY_MS);
    this.play.textContent = this.timer ? "Pause" : "Play";
    this.play.setAttribute("aria-pressed", String(Boolean(this.timer)));
  }
}

function pane(title, { width, height }) {
  const canvas = h("canvas", { width, height, role: "img", "aria-label": `${title}: empty` });
  const words = h("span", { className: "hint" });
  return { title, canvas, words, node: h("figure", { className: "pane" }, h("figcaption", {}, h("strong", {}, title)),
      canvas, words) };
}

function show({ title, canvas, words }, image, told, overlay) {
  if (image) draw(canvas, image, overlay);
  else clear(canvas);
  canvas.setAttribute("aria-label", `${title}: ${image ? told : "empty"}`);
  words.textContent = told || "\u00a0";
}

function summaryOf(answer) {
  const { ensemble, timings_ms: timings, degraded } = answer;
  const isMean = ensemble.strategy !== "sample";
  return facts([
    ["answered in", quantity(timings.total, "ms")],
    ["members",
        isMean ? "none, one pass"
            : `${ensemble.members} of ${ensemble.requested}, ${ensemble.from_cache} cached`],
    ["steps", String(ensemble.steps)],
    ["seed", String(answer.seed)],
    ["standard error", quantity(ensemble.standard_error)],
    ["verdict", verdictMark(answer.uncertainty)],
    ["same bytes again", answer.determinism],
    ...(degraded ? [["less than asked", degraded.reason.replaceAll("_", " ")]] : []),
    ...(answer.deadline_met ? [] : [["deadline", "missed"]]),
  ], "facts tiles");
}

/** Bits of every target frame: a grid that stands for several is shared out among them. */
function perFrame({ bits_per_frame: bits, grid_frames: grids }) {
  const found = [];
  grids.forEach((frames, index) => frames.forEach((frame) => (found[frame - 1] = bits[index] / frames.length)));
  return found;
}

/** Two deviations about the mean of held-out clips. The replies tell (bits, z) pairs, which lie on one line. */
function usualBits(surprise) {
  const known = surprise.filter(({ z }) => Number.isFinite(z)).sort((one, other) => one.z - other.z);
  const [low, high] = [known[0], known.at(-1)];
  if (!low || high.z - low.z < 1e-3 || known.some(({ frames }) => frames.length > 1)) return null;
  const deviation = (high.bits - low.bits) / (high.z - low.z);
  const mean = low.bits - low.z * deviation;
  return [Math.max(0, mean - 2 * deviation), mean + 2 * deviation];
}

function surprising({ surprise_per_frame: surprise }) {
  const odd = surprise.filter(({ z }) => z > 2).flatMap(({ frames }) => frames);
  return odd.length ? `. Unusual: frame ${odd.join(", ")}.` : ".";
}

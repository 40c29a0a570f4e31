// One branch or two side by side at the same time, one scrubber over both, film strips, and how far they differ.

import { Chart } from "./chart.js";
import { clear, decibels, draw, rmse } from "./frames.js";
import { button, h, quantity } from "./ui.js";

const NAMES = "AB";
const NUM_CELLS = 10;
const MOST_POINTS = 60;

/** Draws branches; `onLook(at)` hears of a frame that somebody wants to see, `onChoose(index)` of a branch to drive. */
export class Screens {
  at = 0;
  #branches = [];

  /** beside: what stands next to the first branch while there is no second. */
  constructor(model, beside, onLook, onChoose) {
    this.model = model;
    this.panes = [...NAMES].map((name, index) => paneOf(name, model.cameras[0], () => onChoose(index)));
    this.strips = [...NAMES].map(() => h("div", { className: "film", "aria-hidden": "true" }));
    this.difference = new Chart("Difference of the branches", "root mean square, white is 1",
      { onPick: (point) => onLook(this.#frameOf(point)) });
    this.node = h("div", { className: "screens" },
      h("div", { className: "panes branches" }, this.panes.map((pane) => pane.node), beside), this.#scrubber(onLook));
    this.compared = h("div", { className: "compared", hidden: true }, this.strips, this.difference.node);
    this.compared.addEventListener("click", ({ target }) => {
      const cell = target.closest(".cell");
      if (cell) onLook(Number(cell.dataset.at));
    });
  }

  #scrubber(onLook) {
    this.scrub = h("input", { type: "range", id: "drive-scrub", min: 0, max: 0, value: 0, step: 1,
      oninput: () => onLook(Number(this.scrub.value)) });
    this.time = h("output", { htmlFor: "drive-scrub" });
    return h("div", { className: "scrubber" },
      h("label", { htmlFor: "drive-scrub", className: "hint" }, "Time"), this.scrub, this.time);
  }

  /** Show every branch at a frame; `chosen` is the one that is driven, and they part after `forkedAt`. */
  show(branches, chosen, at, forkedAt) {
    Object.assign(this, { at, forkedAt });
    this.#branches = branches;
    this.longest = Math.max(...branches.map((branch) => branch.length));
    this.panes.forEach((pane, index) => this.#showPane(pane, branches[index], index === chosen));
    this.scrub.max = String(this.longest);
    this.scrub.value = String(at);
    const when = secondsOf(at, this.model);
    this.time.textContent = when;
    this.scrub.setAttribute("aria-valuetext", `frame ${at}, ${when}`);
    if (branches.length === 2) this.#compare(branches);
  }

  /** Draw what is too much to draw for every frame: film strips, and the difference over time. */
  settle() {
    this.compared.hidden = this.#branches.length === 0 || this.longest === 0;
    if (this.compared.hidden) return;
    this.strips.forEach((strip, index) => this.#film(strip, this.#branches[index], index));
    this.difference.node.hidden = this.#branches.length < 2;
    if (this.#branches.length === 2) this.#chartDifference();
  }

  #showPane(pane, branch, isChosen) {
    pane.node.hidden = !branch;
    if (!branch) {
      clear(pane.canvas);
      return;
    }
    draw(pane.canvas, branch.frameAt(this.at));
    this.#showChoice(pane, isChosen);
    const told = this.#whatStands(branch);
    pane.words.textContent = told;
    pane.canvas.setAttribute("aria-label", `Branch ${pane.name}: ${told}`);
  }

  #showChoice({ name, node, title, choose }, isChosen) {
    const isAlone = this.#branches.length < 2;
    node.classList.toggle("chosen", isChosen && !isAlone);
    title.textContent = isAlone ? "Predicted" : name;
    choose.hidden = isAlone;
    choose.setAttribute("aria-pressed", String(isChosen));
    choose.textContent = isChosen ? "Driven" : `Drive ${name}`;
  }

  #whatStands({ length }) {
    if (this.at > length) return `ends at ${secondsOf(length, this.model)}`;
    return this.at === 0 ? "the last frame seen" : `predicted frame ${this.at}`;
  }

  #compare([left, right]) {
    if (this.at > Math.min(left.length, right.length)) return;
    const apart = rmse(left.frameAt(this.at), right.frameAt(this.at));
    const words = apart === 0 ? "the same as A" : `${quantity(decibels(apart), "dB")} PSNR to A`;
    this.panes[1].words.textContent += ` · ${words}`;
  }

  #film(strip, branch, index) {
    strip.hidden = !branch;
    if (!branch) return;
    const times = Array.from({ length: NUM_CELLS },
      (_, cell) => Math.round((cell * this.longest) / (NUM_CELLS - 1)));
    strip.replaceChildren(...times.map((at, cell) => {
      const words = cell === 0 ? "start" : secondsOf(at, this.model);
      return this.#cell(branch, at, index === 0 ? h("span", {}, words) : null);
    }));
  }

  #cell(branch, at, caption) {
    const { width, height } = this.model.cameras[0];
    const canvas = h("canvas", { width, height });
    if (at <= branch.length) draw(canvas, branch.frameAt(at));
    const made = h("div", { className: "cell" }, caption, canvas);
    made.dataset.at = String(at);
    return made;
  }

  #frameOf(point) {
    return this.forkedAt + point * this.every;
  }

  #chartDifference() {
    const [left, right] = this.#branches;
    const both = Math.min(left.length, right.length) - this.forkedAt;
    this.every = Math.max(1, Math.ceil(both / MOST_POINTS));
    const values = Array.from({ length: Math.floor(both / this.every) }, (_, index) => {
      const at = this.#frameOf(index + 1);
      return rmse(left.frameAt(at), right.frameAt(at));
    });
    this.difference.show([{ name: "A and B", kind: "line", values: values.length ? values : [null] }],
      { words: this.#differenceWords(values.length) });
    this.difference.point(Math.max(1, Math.round((this.at - this.forkedAt) / this.every)));
  }

  #differenceWords(count) {
    if (count === 0) return "Drive on, and the branches can be compared.";
    const skipped = this.every > 1 ? `, every ${this.every}th` : "";
    return `Frames after they parted at ${secondsOf(this.forkedAt, this.model)}${skipped}.`;
  }
}

function paneOf(name, { width, height }, onChoose) {
  const canvas = h("canvas", { width, height, role: "img", "aria-label": `Branch ${name}: empty` });
  const words = h("span", { className: "hint" });
  const choose = button(`Drive ${name}`, onChoose, { className: "plain", hidden: true });
  const title = h("strong", {}, name);
  const node = h("figure", { className: "pane" }, h("figcaption", {}, title, choose), canvas, words);
  return { name, title, canvas, words, choose, node };
}

const secondsOf = (frames, { fps }) => `+${(frames / fps).toFixed(2)}\u202fs`;

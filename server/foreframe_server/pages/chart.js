// A small chart over frames 1..count: lines, bars, what is usual, and where trust ends. Knows no server.

import { h, quantity, svg } from "./ui.js";

const HEIGHT = 136, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;
const MOST_BAR = 46;
const MOST_TICKS = 16;

/** Redraws itself at the width that it has, with a cursor on one frame. */
export class Chart {
  #series = [];
  #extras = {};
  #at = 1;

  /** onPick: hears which frame was clicked. */
  constructor(title, unit, { onPick = () => {}, height = HEIGHT } = {}) {
    Object.assign(this, { title, unit, height });
    this.legend = h("ul", { className: "legend" });
    this.figure = svg("svg", { role: "img", "aria-label": title, height });
    this.note = h("p", { className: "hint" });
    this.node = h("figure", { className: "chart" },
      h("figcaption", {}, h("strong", {}, title), ` ${unit}`, this.legend), this.figure, this.note);
    this.figure.addEventListener("click", (event) => onPick(this.#frameAt(event)));
    new ResizeObserver(() => this.#draw()).observe(this.figure);
  }

  /** Draw series [{name, kind, values}], whose values are null where there are none.
   *
   * kinds: "line" and "fact" are measured, with a dot a frame; "usual" is a dashed line; "bound" an area up to its
   * values; "bars". extras: {band: [low, high] in the values' unit, bandWords, limit: the last frame that is not
   * shaded, limitWords, words}.
   */
  show(series, extras = {}) {
    this.#series = series;
    this.#extras = extras;
    this.#draw();
    this.#tell();
  }

  /** Put the cursor on a frame. */
  point(index) {
    this.#at = index;
    this.cursor?.setAttribute("transform", `translate(${this.#across(index)} 0)`);
  }

  get #count() {
    return Math.max(1, ...this.#series.map((one) => one.values.length));
  }

  get #known() {
    return this.#series.filter((one) => one.values.some(Number.isFinite));
  }

  get #most() {
    const values = this.#known.flatMap((one) => one.values.filter(Number.isFinite));
    return Math.max(1e-9, ...values, this.#extras.band?.[1] ?? 0);
  }

  get #isLimited() {
    return Number.isFinite(this.#extras.limit) && this.#extras.limit < this.#count;
  }

  get #right() {
    return this.width - RIGHT;
  }

  get #floor() {
    return this.height - BOTTOM;
  }

  #across(index) {
    return LEFT + ((index - 0.5) / this.#count) * (this.#right - LEFT);
  }

  #frameAt(event) {
    const x = event.clientX - this.figure.getBoundingClientRect().left;
    const frame = Math.round(((x - LEFT) / (this.#right - LEFT)) * this.#count + 0.5);
    return Math.min(this.#count, Math.max(1, frame));
  }

  #draw() {
    this.width = Math.max(160, this.figure.clientWidth || this.node.clientWidth || 640);
    const most = this.#most;
    const up = (value) => this.#floor - (Math.max(0, value) / (1.06 * most)) * (this.#floor - TOP);
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: this.#floor });
    this.figure.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.figure.replaceChildren(...this.#band(up), ...this.#under(up), ...this.#grid(most, up), ...this.#limit(),
      ...this.#over(up), this.cursor);
    this.point(this.#at);
  }

  #tell() {
    const { words = "" } = this.#extras;
    const values = this.#known.map((one) => `${one.name}: ${one.values.map((value) => quantity(value)).join(", ")}`);
    this.figure.setAttribute("aria-label", `${this.title}, ${this.unit}. ${values.join(". ")}`);
    this.legend.replaceChildren(...this.#legendRows().map(([kind, name]) => h("li", { className: kind }, name)));
    this.note.textContent = words;
    this.note.hidden = !words;
  }

  #legendRows() {
    const { band, bandWords, limitWords } = this.#extras;
    return [...this.#known.map((one) => [one.kind, one.name]), ...(band ? [["band", bandWords]] : []),
      ...(this.#isLimited && limitWords ? [["untrusted", limitWords]] : [])];
  }

  #grid(most, up) {
    const every = Math.ceil(this.#count / MOST_TICKS);
    const frames = Array.from({ length: this.#count }, (_, index) => index + 1).filter((index) => index % every === 0);
    return [...[0, 0.5, 1].flatMap((share) => this.#level(share * most, most, up)),
      ...frames.map((index) => this.#tick(index))];
  }

  #level(value, most, up) {
    const y = up(value);
    return [svg("line", { class: "grid", x1: LEFT, x2: this.#right, y1: y, y2: y }),
      svg("text", { x: LEFT - 7, y: y + 4, "text-anchor": "end" }, quantity(value, "", most < 100 ? 2 : 3))];
  }

  #tick(index) {
    return svg("text", { x: this.#across(index), y: this.height - 4, "text-anchor": "middle" }, String(index));
  }

  #band(up) {
    const { band } = this.#extras;
    if (!band) return [];
    const [bottom, top] = band.map(up);
    return [svg("rect", { class: "band", x: LEFT, width: this.#right - LEFT, y: top, height: bottom - top })];
  }

  #limit() {
    if (!this.#isLimited) return [];
    const x = this.#across(this.#extras.limit + 0.5);
    return [svg("rect", { class: "untrusted", x, width: this.#right - x, y: TOP, height: this.#floor - TOP })];
  }

  #under(up) {
    return this.#known.filter(({ kind }) => kind === "bound").flatMap(({ values }) => this.#area(values, up));
  }

  #over(up) {
    return this.#known.filter(({ kind }) => kind !== "bound").flatMap(({ kind, values }) => {
      if (kind === "bars") return this.#bars(values, up);
      return kind === "usual" ? [curve(kind, this.#wide(values, up))] : this.#dotted(kind, this.#points(values, up));
    });
  }

  #points(values, up) {
    return values.map((value, index) => [this.#across(index + 1), value])
      .filter(([, value]) => Number.isFinite(value)).map(([x, value]) => [x, up(value)]);
  }

  /** Points from the left edge of the first frame to the right edge of the last: one frame makes a line too. */
  #wide(values, up) {
    const points = this.#points(values, up);
    const half = (this.#right - LEFT) / this.#count / 2;
    const [[left, first], [right, last]] = [points[0], points.at(-1)];
    return [[left - half, first], ...points, [right + half, last]];
  }

  #area(values, up) {
    const points = this.#wide(values, up);
    const corners = [[points.at(-1)[0], this.#floor], [points[0][0], this.#floor]];
    return [svg("polygon", { class: "bound", points: listOf([...points, ...corners]) }), curve("bound", points)];
  }

  #dotted(kind, points) {
    return [curve(kind, points), ...points.map(([cx, cy]) => svg("circle", { class: kind, cx, cy, r: 2.8 }))];
  }

  #bars(values, up) {
    const width = Math.min(MOST_BAR, (0.56 * (this.#right - LEFT)) / this.#count);
    return this.#points(values, up).map(([x, y]) =>
      svg("rect", { class: "bar", x: x - width / 2, y, width, rx: 2, height: this.#floor - y }));
  }
}

const listOf = (points) => points.map((point) => point.join(",")).join(" ");

const curve = (kind, points) => svg("polyline", { class: kind, points: listOf(points) });

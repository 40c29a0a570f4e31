// Small parts of a page: elements, labelled fields that carry their refusals, numbers with units, line charts.
// Text never becomes markup: everything is set as text.

const SVG = "http://www.w3.org/2000/svg";
const MOST_DECIMALS = 6;
let nextId = 0;

/** Make an element; `on…` properties listen, `data-…` and `aria-…` are attributes, others are properties. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  dress(made, properties);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat());
  return made;
}

function dress(made, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "className" || name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
}

/** A label, its control and the place where a refusal of it is told.
 *
 * pointers: JSON pointers of the request that this field is the cause of, such as "/ensemble/size"; the longest that
 * a refusal's pointer begins with wins.
 */
export function field(label, control, { pointers = [], hint = "", wide = false } = {}) {
  control.id ||= `field-${(nextId += 1)}`;
  control.dataset.pointers = JSON.stringify(pointers);
  const words = h("p", { className: "refused", id: `${control.id}-refused`, hidden: true });
  const told = h("p", { className: "hint", id: `${control.id}-hint`, hidden: !hint }, hint);
  control.setAttribute("aria-describedby", `${told.id} ${words.id}`);
  const caption = h("label", { htmlFor: control.id }, label);
  const isTick = control.type === "checkbox";
  return h("div", { className: `field${wide ? " wide" : ""}${isTick ? " tick" : ""}` }, ...(isTick ? [control, caption]
    : [caption, control]), told, words);
}

/** An input that remembers what was typed, in this tab, under its name. */
export function input(name, properties = {}) {
  return remembering(h("input", { name, autocomplete: "off", ...properties }));
}

/** A choice of [value, text] pairs, remembered like an input. */
export function select(name, choices, properties = {}) {
  const options = choices.map(([value, words]) => h("option", { value }, words));
  return remembering(h("select", { name, ...properties }, ...options));
}

/** A large text field, remembered like an input. */
export const textarea = (name, properties = {}) => remembering(h("textarea", { name, ...properties }));

/** A button. */
export const button = (words, onclick, properties = {}) => h("button", { type: "button", onclick, ...properties },
    words);

function remembering(control) {
  const place = `foreframe.typed.${control.name}`;
  const isTick = control.type === "checkbox";
  const held = sessionStorage.getItem(place);
  if (held !== null) {
    if (isTick) control.checked = held === "true";
    else if (control.tagName !== "SELECT" || [...control.options].some((option) => option.value === held)) {
      control.value = held;
    }
  }
  const keep = () => {
    try {
      sessionStorage.setItem(place, String(isTick ? control.checked : control.value));
    } catch {
      sessionStorage.removeItem(place);  // larger than the browser keeps: it stays in the field alone
    }
  };
  control.addEventListener("input", keep);
  control.addEventListener("change", keep);
  return control;
}

/** Whole or decimal number of an input, or null where it is empty. */
export const numberIn = (control) => (control.value.trim() === "" ? null : Number(control.value));

/** Where refusals without a field of their own are told; read out as they come. */
export const alertPlace = () => h("p", { className: "alert", role: "alert", hidden: true });

/** Tell a refusal in words, beside the fields that caused it; what has no field goes to `place`. Focuses the first. */
export function showRefusal(form, place, error) {
  clearRefusals(form, place);
  const homeless = [];
  let first = null;
  for (const reason of causesOf(error)) {
    const control = controlFor(form, reason.pointer);
    if (control) say(control, sentence(reason));
    else homeless.push(`${reason.pointer} ${sentence(reason)}`.trim());
    first ??= control;
  }
  place.textContent = [error.message, ...homeless, waitOf(error)].filter(Boolean).join(" ");
  place.hidden = false;
  first?.focus({ preventScroll: true });
  first?.closest(".field").scrollIntoView({ block: "nearest" });
}

/** The reasons of a refusal; one about a deadline, which names no field, is the deadline's. */
function causesOf({ errors = [], code = "", message }) {
  return errors.length === 0 && code.startsWith("deadline") ? [{ pointer: "/deadline_ms", message }] : errors;
}

/** Tell one field's own refusal, such as of a file that could not be read. */
export function say(control, words) {
  const slot = document.getElementById(`${control.id}-refused`);
  for (let at = control.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  control.setAttribute("aria-invalid", "true");
  slot.textContent = slot.hidden ? words : `${slot.textContent} ${words}`;
  slot.hidden = false;
}

/** Take every refusal of a form back. */
export function clearRefusals(form, place = null) {
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const words of form.querySelectorAll(".refused")) {
    words.hidden = true;
    words.textContent = "";
  }
  if (place) place.hidden = true;
}

function controlFor(form, pointer) {
  let best = null, length = -1;
  for (const control of form.querySelectorAll("[data-pointers]")) {
    for (const own of JSON.parse(control.dataset.pointers)) {
      const isCause = pointer === own || pointer.startsWith(`${own}/`);
      if (isCause && own.length > length) [best, length] = [control, own.length];
    }
  }
  return best;
}

/** One reason of a refusal as a sentence. */
export function sentence({ pointer, message, expected, received }) {
  const facts = expected ? [`expected ${expected}`, received && `received ${received}`].filter(Boolean).join(", ") : "";
  const words = `${placeOf(pointer)}${message.replace(/\.$/, "")}${facts ? ` (${facts})` : ""}.`;
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Where in a list: "Row 3, number 2: " of "/future/values/2/1". People count from 1. */
function placeOf(pointer) {
  const found = /\/([a-z_]+)\/(\d+)(?:\/(\d+))?$/.exec(pointer);
  if (!found) return "";
  const [, list, first, second] = found;
  const kind = { values: "Row", frames: "Frame" }[list] ?? "Number";
  return `${kind} ${Number(first) + 1}${second === undefined ? "" : `, number ${Number(second) + 1}`}: `;
}

function waitOf(error) {
  return error.retryAfterMs ? `Try again in ${quantity(error.retryAfterMs / 1000, "s")}.` : "";
}

/** A number with its unit, to three digits that count; a dash where there is none. */
export function quantity(value, unit = "", digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size >= 10 ** (digits - 1) || Number.isInteger(value) ? Math.round(value).toLocaleString("en")
    : value.toPrecision(digits);
  return unit ? `${text}\u202f${unit}` : text;
}

/** Numbers of a table as text, all with as many decimals as the smallest of `guide` needs for `digits` that count. */
export function aligned(numbers, guide = numbers, digits = 3) {
  const sizes = guide.filter((value) => Number.isFinite(value) && value !== 0).map(Math.abs);
  const least = sizes.length ? Math.floor(Math.log10(Math.min(...sizes))) : 0;
  const decimals = Math.min(MOST_DECIMALS, Math.max(0, digits - 1 - least));
  return numbers.map((value) => (Number.isFinite(value) ? value.toFixed(decimals) : "–"));
}

/** A list of terms and their values, as rows or, with the class "tiles", side by side. Values may be elements. */
export const facts = (rows, className = "facts") => h("dl", { className }, rows.map(([term, value]) =>
  h("div", {}, h("dt", {}, term), h("dd", {}, value))));

/** Warnings of a reply, or nothing. */
export const warningList = (warnings) => (warnings.length === 0 ? null : h("ul", { className: "warnings" },
  warnings.map(({ code, pointer, message }) => h("li", {}, h("code", {}, code), ` ${pointer} ${message}`))));

let live = null;

/** Have something read out that is seen elsewhere. */
export function announce(words) {
  live ??= document.getElementById("live");
  live.textContent = words;
}

/** Put text on the clipboard and say so on the button for a moment. */
export async function copy(text, pressed) {
  const before = pressed.textContent;
  try {
    await navigator.clipboard.writeText(text);
    pressed.textContent = "Copied";
  } catch {
    pressed.textContent = "Not allowed here";
  }
  setTimeout(() => (pressed.textContent = before), 1200);
}

const HEIGHT = 136, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;

/** A small chart over frames 1..count with a cursor, which redraws itself at the width that it has. */
export class Chart {
  #series = [];
  #extras = {};
  #at = 1;

  /** onPick: hears which frame was clicked. */
  constructor(title, unit, onPick = () => {}) {
    Object.assign(this, { title, unit });
    this.legend = h("ul", { className: "legend" });
    this.figure = svg("svg", { role: "img", "aria-label": title, height: HEIGHT });
    this.note = h("p", { className: "hint" });
    this.node = h("figure", { className: "chart" }, h("figcaption", {}, h("strong", {}, title), ` ${unit}`,
        this.legend),
      this.figure, this.note);
    this.figure.addEventListener("click", (event) => onPick(this.#frameAt(event)));
    new ResizeObserver(() => this.#draw()).observe(this.figure);
  }

  /** Draw series [{name, kind: "line"|"dash"|"bars", values}], whose values are null where there are none.
   *
   * extras: {band: [low, high] in the values' unit, bandWords, limit: the last frame that is not shaded, words}.
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

  #across(index) {
    return LEFT + ((index - 0.5) / this.#count) * (this.width - LEFT - RIGHT);
  }

  #frameAt(event) {
    const x = event.clientX - this.figure.getBoundingClientRect().left;
    return Math.min(this.#count,
        Math.max(1, Math.round(((x - LEFT) / (this.width - LEFT - RIGHT)) * this.#count + 0.5)));
  }

  #draw() {
    this.width = Math.max(160, this.figure.clientWidth || this.node.clientWidth || 640);
    const { band, limit } = this.#extras;
    const top = 1.06 * Math.max(1e-9, ...this.#known.flatMap((one) => one.values.filter(Number.isFinite)),
        band?.[1] ?? 0);
    const up = (value) => HEIGHT - BOTTOM - (Math.max(0, value) / top) * (HEIGHT - TOP - BOTTOM);
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.figure.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.figure.replaceChildren(...this.#band(band, up), ...this.#grid(top / 1.06, up), ...this.#limit(limit),
      ...this.#known.flatMap((one) => this.#drawn(one, up)), this.cursor);
    this.point(this.#at);
  }

  #tell() {
    const { band, bandWords, words = "" } = this.#extras;
    this.figure.setAttribute("aria-label", `${this.title}, ${this.unit}. ${this.#known.map((one) =>
      `${one.name}: ${one.values.map((value) => quantity(value)).join(", ")}`).join(". ")}`);
    this.legend.replaceChildren(...this.#known.map((one) => h("li", { className: one.kind }, one.name)),
      ...(band ? [h("li", { className: "band" }, bandWords)] : []));
    this.note.textContent = words;
    this.note.hidden = !words;
  }

  #grid(most, up) {
    const lines = [0, 0.5, 1].map((share) => share * most).flatMap((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: up(value), y2: up(value) }),
      svg("text", { x: LEFT - 7, y: up(value) + 4, "text-anchor": "end" }, quantity(value, "", most < 100 ? 2 : 3))]);
    const every = Math.ceil(this.#count / 16);
    const frames = Array.from({ length: this.#count }, (_, index) => index + 1).filter((index) => index % every === 0);
    return [...lines, ...frames.map((index) =>
      svg("text", { x: this.#across(index), y: HEIGHT - 4, "text-anchor": "middle" }, String(index)))];
  }

  #band(band, up) {
    if (!band) return [];
    return [svg("rect", { class: "band", x: LEFT, width: this.width - LEFT - RIGHT, y: up(band[1]),
        height: up(band[0]) - up(band[1]) })];
  }

  #limit(limit) {
    if (!Number.isFinite(limit)) return [];
    const x = this.#across(limit + 0.5);
    return [svg("rect", { class: "untrusted", x, width: Math.max(0, this.width - RIGHT - x), y: TOP,
        height: HEIGHT - TOP - BOTTOM })];
  }

  #drawn({ kind, values }, up) {
    const points = values.map((value, index) => [this.#across(index + 1), value])
      .filter(([, value]) => Number.isFinite(value)).map(([x, value]) => [x, up(value)]);
    if (kind !== "bars") {
      const path = svg("polyline", { class: kind, points: points.map((point) => point.join(",")).join(" ") });
      return [path, ...points.map(([cx, cy]) => svg("circle", { class: kind, cx, cy, r: 2.8 }))];
    }
    const width = Math.min(46, (0.56 * (this.width - LEFT - RIGHT)) / this.#count);
    return points.map(([x, y]) => svg("rect", { class: "bar", x: x - width / 2, y, width, rx: 2,
        height: HEIGHT - BOTTOM - y }));
  }
}

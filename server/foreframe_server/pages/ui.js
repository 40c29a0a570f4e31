// Small parts of a page: elements, labelled fields that carry their refusals, numbers with units.
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

const keptAt = (name) => `foreframe.typed.${name}`;

/** Whether somebody has chosen or typed the control's value in this tab. */
export const isTyped = ({ name }) => sessionStorage.getItem(keptAt(name)) !== null;

function remembering(control) {
  const place = keptAt(control.name);
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

// Contract: what a model takes and gives, its states with units and ranges, and a check of somebody's own sample.

import { post } from "./api.js";
import { readStates } from "./recording.js";
import { aligned, alertPlace, clearRefusals, facts, field, h, quantity, say, showRefusal, svg, textarea,
    warningList } from "./ui.js";

/** Fill the panel. */
export function mount(panel, { model, models, schema }) {
  const others = models.filter((other) => other !== model);
  panel.append(h("div", { className: "columns" }, card(model), new Check(schema).node), ...others.map(card),
      schemaTable(schema));
}

function card(model) {
  const { sampler, tokens } = model;
  return h("section", { className: "card" }, h("h2", {}, model.id), h("p", {}, model.description), facts([
    ["family, revision", `${model.family}, ${model.revision}`],
    ["cameras", model.cameras.map((camera) => `${camera.name}, ${camera.width}×${camera.height} RGB`).join("; ")],
    ["context", `${model.context_frames} frames at ${model.fps} a second`],
    ["horizon", `${model.horizon} frames, ${quantity(model.horizon / model.fps, "s")}`],
    ["states", `${model.state_schema}, ${model.state_dim} numbers a row; ${model.alignment}`],
    ["sampler", `${sampler.solver}, ${sampler.steps} steps (at most ${sampler.max_steps}), shift ${sampler.shift}`],
    ["members", `at most ${sampler.max_ensemble_size}`],
    ["guidance", sampler.guidance === null ? "none" : String(sampler.guidance)],
    ["tokens", tokens ? `${tokens.vocabulary.toLocaleString("en")} ids, ${tokens.rows}×${tokens.columns} a grid, ` +
      (tokens.is_calibrated ? "calibrated" : "not calibrated") : "none"],
    ["can", model.capabilities.join(", ")],
    ["equal requests", model.determinism],
  ]));
}

function schemaTable(schema) {
  const columns = ["mean", "std", "low", "high"]
    .map((column) => aligned(schema[column] ?? schema.names.map(() => null), schema.std ?? [], 2));
  const rows = schema.names.map((name, index) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)),
    h("td", {}, schema.units[index]), columns.map((column) => h("td", { className: "number" }, column[index])),
    h("td", {}, range(schema, index))));
  const heads = ["Number", "Unit", "Mean", "Deviation", "Lowest seen", "Highest seen", "Range"];
  return h("section", {}, h("h2", {}, `State schema ${schema.name}`),
      h("p", { className: "quiet" }, `${schema.description} ${schema.dim} numbers a row` +
    `${schema.rate_hz ? `, ${schema.rate_hz} rows a second` : ""}. According to ${schema.source}.`),
    h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "State schema" }, h("table", {},
      h("thead", {}, h("tr", {}, heads.map((head, at) => h("th", { scope: "col",
        className: at > 1 && at < 6 ? "number" : "" }, head)))), h("tbody", {}, rows))));
}

/** The range of the training data, with one deviation about the mean drawn into it. */
function range({ low, high, mean, std }, index) {
  if (!low || !mean) return "";
  const [from, to] = [low[index], high[index]];
  const at = (value) => 100 * Math.min(1, Math.max(0, (value - from) / (to - from || 1)));
  const [left, right] = [at(mean[index] - std[index]), at(mean[index] + std[index])];
  return svg("svg", { viewBox: "0 0 100 10", class: "range", "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("rect", { class: "whole", y: 4, width: 100, height: 2 }),
        svg("rect", { class: "usual", x: left, y: 2, width: Math.max(1, right - left), height: 6 }),
    svg("rect", { class: "mean", x: Math.min(99, at(mean[index])), width: 1, height: 10 }));
}

/** Rows to try against the schema, without predicting anything. */
class Check {
  constructor(schema) {
    this.schema = schema;
    this.rows = textarea("sample", { rows: 7, spellcheck: false, placeholder: "One row of numbers a line, or JSON" });
    this.refusals = alertPlace();
    this.result = h("div", { "aria-live": "polite" });
    const example = h("button", { type: "button", className: "plain", onclick: () => this.#fill() },
        "Fill in the mean");
    this.form = h("form", { onsubmit: (event) => (event.preventDefault(), this.#check()) },
      field("Rows of states, CSV or JSON", this.rows, { wide: true, pointers: ["/values", "/names", "/units", ""],
        hint: "A first line of names may put them in any order. JSON may say {values, names, units}." }),
      this.refusals, h("div", { className: "actions" }, h("button", { type: "submit", className: "first" },
          "Check my sample"), example));
    this.rows.addEventListener("drop", (event) => this.#drop(event));
    this.node = h("section", { className: "card" }, h("h2", {}, "Check my sample"), this.form, this.result);
  }

  #fill() {
    const numbers = this.schema.mean ?? this.schema.names.map(() => 0);
    this.rows.value = `${this.schema.names.join(", ")}\n${numbers.map((value) => value.toPrecision(4)).join(", ")}`;
    this.rows.dispatchEvent(new Event("input"));
  }

  async #drop(event) {
    const [file] = event.dataTransfer.files;
    if (!file) return;
    this.rows.value = await file.text();
    this.rows.dispatchEvent(new Event("input"));
  }

  async #check() {
    clearRefusals(this.form, this.refusals);
    this.result.replaceChildren();
    let sample;
    try {
      sample = readStates(this.rows.value);
    } catch (error) {
      say(this.rows, error.message);
      return;
    }
    try {
      this.#show(await post(`/v1/state-schemas/${encodeURIComponent(this.schema.name)}/check`, sample));
    } catch (error) {
      showRefusal(this.form, this.refusals, error);
    }
  }

  #show({ rows, warnings, first_row: first }) {
    const { names, units } = this.schema;
    this.result.replaceChildren(h("p", { className: "good" }, `${rows} ${rows === 1 ? "row fits" : "rows fit"}` +
      `${warnings.length ? ", with warnings." : "."}`), warningList(warnings) ?? "",
      h("details", {}, h("summary", {}, "The first row as the model gets it"), facts(first.map((value, index) =>
        [names[index], quantity(value, units[index] === "1" ? "" : units[index])]), "facts tiles")));
  }
}

// Recent requests of this page: how long each stage took, what was warned of, and the same request for a terminal.

import { recent } from "./api.js";
import { asCurl, asPython } from "./snippets.js";
import { button, copy, h, quantity, sentence, svg, warningList } from "./ui.js";

const STAGES = ["receive", "decode", "queue", "encode", "condition", "denoise", "latent_decode", "read", "prepare",
  "evaluate", "render", "reduce", "respond"];

/** Show what this page asked, and follow it. */
export function mount(panel) {
  const list = h("ol", { className: "requests" });
  const empty = h("p", { className: "quiet" }, "Nothing has been asked yet. Predict something in the Playground.");
  panel.append(h("h2", {}, "Recent requests"), h("p", { className: "lead" },
      "What this page asked the server, newest first. A bar is where the server's time went, stage by stage."),
    stageLegend(), empty, list);
  const rows = new Map();
  const update = () => {
    for (const record of recent.list) refresh(rows, record);
    list.replaceChildren(...recent.list.map((record) => rows.get(record).node));
    for (const record of rows.keys()) if (!recent.list.includes(record)) rows.delete(record);
    empty.hidden = recent.list.length > 0;
  };
  recent.addEventListener("change", update);
  update();
}

function refresh(rows, record) {
  const isDone = record.ms !== null;
  if (rows.get(record)?.isDone === isDone) return;
  rows.set(record, { isDone, node: row(record) });
}

function row(record) {
  const status = record.ms === null ? "under way" : record.status || "no answer";
  const isBad = record.problem !== null;
  return h("li", { className: isBad ? "bad" : "" },
    h("div", { className: "ends" }, h("time", {}, record.at.toLocaleTimeString("en-GB")),
        h("code", {}, `${record.method} ${record.path}`),
      h("span", { className: "state" }, String(status)), h("span", {}, quantity(record.ms, "ms"))),
    record.timings ? stageBar(record.timings) : null,
    isBad ? h("p", { className: "refused" }, record.problem) : null,
    record.causes.map((cause) => h("p", { className: "refused" }, h("code", {}, cause.pointer), ` ${sentence(cause)}`)),
    warningList(record.warnings),
    h("div", { className: "ends quiet" }, record.requestId ? h("span", {}, "request ", h("code", {}, record.requestId))
        : null,
      button("Copy as curl", (event) => copy(asCurl(record), event.target), { className: "plain" }),
      button("Copy as Python", (event) => copy(asPython(record), event.target), { className: "plain" })));
}

const told = (stage, ms) => `${stage.replaceAll("_", " ")} ${quantity(ms, "ms")}`;

const stagesOf = (timings) => STAGES.filter((stage) => timings[stage] > 0).map((stage) => [stage, timings[stage]]);

function stageBar(timings) {
  const parts = stagesOf(timings);
  const total = parts.reduce((sum, [, ms]) => sum + ms, 0) || 1;
  let from = 0;
  const bars = parts.map(([stage, ms]) => {
    const bar = svg("rect", { class: `stage-${stage}`, x: (1000 * from) / total, y: 0, height: 10,
      width: Math.max(1, (1000 * ms) / total - 1) }, svg("title", {}, told(stage, ms)));
    from += ms;
    return bar;
  });
  const words = parts.toSorted((one, other) => other[1] - one[1]).slice(0, 4)
    .map(([stage, ms]) => told(stage, ms)).join(" · ");
  return h("div", { className: "stages" },
    svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": words }, ...bars),
    h("p", { className: "hint" }, words));
}

function stageLegend() {
  const shown = [["queue", "waiting"], ["denoise", "model"], ["latent_decode", "decoding frames"], ["receive", "wire"]];
  return h("ul", { className: "legend stage-legend" }, shown.map(([stage, words]) =>
    h("li", {}, svg("svg", { viewBox: "0 0 10 10" }, svg("rect",
        { class: `stage-${stage}`, width: 10, height: 10, rx: 2 })), words)));
}

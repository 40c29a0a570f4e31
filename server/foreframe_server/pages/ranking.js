// What a scoring said: the best plan and how sure that is, a table to sort, and the frames of one plan.

import { draw, imagesOf } from "./frames.js";
import { aligned, button, copy, facts, h, quantity, svg, warningList } from "./ui.js";

const NO_PLANS = "No plans yet. Score samples them around the base, predicts what each would lead to and gives it a " +
  "cost: lower is better.";
const TERMS = { goal_image: "Goal", spread: "Spread", smoothness: "Jerkiness", likelihood: "Doubt" };

/** Shows a reply of /v1/scores. */
export class Ranking {
  #order = { column: "rank", rising: true };

  constructor(model) {
    this.model = model;
    this.bar = h("progress", { hidden: true, "aria-label": "Plans are being scored" });
    this.words = h("span", { className: "hint", role: "status" });
    this.summary = h("div", { className: "summary" });
    this.chosen = h("section", { className: "chosen-plan", hidden: true });
    this.table = h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Candidates" });
    const running = h("p", { className: "running" }, this.bar, this.words);
    this.node = h("div", {}, running, this.summary, this.chosen, this.table);
    this.forget();
  }

  /** Say what goes on; empty when nothing does. */
  tell(words) {
    this.bar.hidden = !words;
    this.words.textContent = words;
  }

  /** Empty it. */
  forget() {
    this.reply = null;
    this.chosen.hidden = true;
    this.summary.replaceChildren(h("p", { className: "empty" }, NO_PLANS));
    this.table.replaceChildren();
  }

  /** Show a reply about plans. `goal`: the picture that was to be reached. */
  async show(reply, plans, { goal }) {
    Object.assign(this, { reply, plans, goal });
    this.films = await filmsOf(reply.candidates);
    this.looked = reply.best_index;
    this.summary.replaceChildren(summaryOf(reply), warningList(reply.warnings) ?? "");
    this.#tabulate();
    this.#look(reply.best_index);
  }

  get #columns() {
    const terms = [...new Set(this.reply.candidates.flatMap(({ terms: own }) => Object.keys(own ?? {})))];
    return [
      ["rank", "Rank", ({ rank }) => rank],
      ["index", "Plan", ({ index }) => index],
      ["cost", "Cost", ({ cost }) => cost],
      ...terms.map((term) => [term, TERMS[term] ?? term, ({ terms: own }) => own?.[term] ?? null]),
      ["uncertainty", "Spread at the goal", ({ uncertainty }) => uncertainty?.spread_per_frame.at(-1) ?? null],
    ];
  }

  #tabulate() {
    const columns = this.#columns;
    const rows = this.#sorted(columns);
    this.range = rangeOf(this.reply.candidates);
    const texts = columns.map((column) => textsOf(column, rows));
    const bodyRows = rows.map((row, at) => this.#row(row, columns.map(([name], index) => [name, texts[index][at]])));
    this.table.replaceChildren(h("table", { className: "ranking" },
      h("caption", { className: "unseen" }, "Candidates and their costs"),
      h("thead", {}, this.#headRow(columns)), h("tbody", {}, bodyRows)));
  }

  #sorted(columns) {
    const { column, rising } = this.#order;
    const [, , read] = columns.find(([name]) => name === column) ?? columns[0];
    return this.reply.candidates.toSorted((one, other) => compare(read(one), read(other), rising));
  }

  #headRow(columns) {
    return h("tr", {}, h("th", { scope: "col" }, "Last frame"), columns.map((one) => this.#head(one)),
      h("th", { scope: "col" }, "Status"));
  }

  #head([name, words]) {
    const { column, rising } = this.#order;
    const isHere = name === column;
    const sorted = rising ? "ascending" : "descending";
    const sort = button(isHere ? `${words} ${rising ? "▲" : "▼"}` : words, () => this.#sort(name),
      { className: "plain" });
    return h("th", { scope: "col", className: name === "index" ? "" : "number", "aria-sort": isHere ? sorted : "none" },
      sort);
  }

  #sort(column) {
    this.#order = { column, rising: this.#order.column === column ? !this.#order.rising : true };
    this.#tabulate();
    [...this.table.querySelectorAll("th[aria-sort]")].find((head) => head.ariaSort !== "none")?.firstChild.focus();
  }

  #row(candidate, texts) {
    const { index } = candidate;
    const row = h("tr", { onclick: () => this.#look(index) }, h("td", {}, this.#thumbnail(index)),
      texts.map(([name, text]) => this.#cell(candidate, name, text)), h("td", {}, statusOf(candidate)));
    row.dataset.index = String(index);
    row.classList.toggle("here", index === this.looked);
    return row;
  }

  #cell({ index, cost }, name, text) {
    if (name === "index") return h("td", {}, this.#choice(index));
    const hasBar = name === "cost" && Number.isFinite(cost);
    return h("td", { className: "number" }, hasBar ? this.#bar(cost) : null, text);
  }

  #choice(index) {
    return button(index === 0 ? "0, the base" : String(index), () => this.#look(index),
      { className: "plain", "aria-pressed": String(index === this.looked) });
  }

  #bar(cost) {
    const [least, most] = this.range;
    const from = Math.min(0, least);
    const width = Math.max(1, (100 * (cost - from)) / (most - from || 1));
    return svg("svg", { class: "range", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "usual", y: 2, height: 6, width }));
  }

  #thumbnail(index) {
    const film = this.films.get(index);
    if (!film) return "";
    const canvas = h("canvas", { width: film[0].width, height: film[0].height, className: "thumbnail", role: "img",
      "aria-label": `Last frame of plan ${index}` });
    draw(canvas, film.at(-1));
    return canvas;
  }

  #look(index) {
    this.looked = index;
    for (const row of this.table.querySelectorAll("tr[data-index]")) {
      const isHere = Number(row.dataset.index) === index;
      row.classList.toggle("here", isHere);
      row.querySelector("button").setAttribute("aria-pressed", String(isHere));
    }
    this.chosen.hidden = index === null;
    if (index !== null) this.#showChosen(this.reply.candidates[index]);
  }

  #showChosen({ index, rank, cost }) {
    const film = this.films.get(index);
    const taken = button("Copy its rows", () => copy(JSON.stringify(this.plans[index]), taken), { className: "plain" });
    const words = [rank === null ? "It was not ranked. " : `Rank ${rank}, cost ${quantity(cost)}. `,
      film ? "" : "Its frames were not asked for: show more of the best. "];
    this.chosen.replaceChildren(h("h2", {}, `Plan ${index}${index === this.reply.best_index ? ", the best" : ""}`),
      h("p", { className: "hint" }, words, taken), film ? this.#film(film) : "");
  }

  #film(film) {
    const words = "Predicted frames of the plan, and the goal";
    const made = h("div", { className: "film", role: "img", "aria-label": words },
      [...film, this.goal].map((image, at) => filmCell(image, at === film.length ? "goal" : String(at + 1))));
    made.style.setProperty("--count", String(film.length + 1));
    return made;
  }
}

const isCount = (name) => name === "rank" || name === "index";

/** Numbers by size, what has none last. */
function compare(one, other, rising) {
  if (one === null || other === null) return Number(one === null) - Number(other === null);
  return rising ? one - other : other - one;
}

/** The least and the most cost. */
function rangeOf(candidates) {
  const costs = candidates.map(({ cost }) => cost).filter(Number.isFinite);
  return [Math.min(...costs), Math.max(...costs)];
}

/** What stands in a column, row by row. */
function textsOf([name, , read], rows) {
  return isCount(name) ? rows.map((row) => String(read(row) ?? "–")) : aligned(rows.map(read));
}

/** Images of the candidates that came with frames, by index. */
async function filmsOf(candidates) {
  const filmed = candidates.filter(({ frames }) => frames);
  return new Map(await Promise.all(filmed.map(async ({ index, frames }) => [index, await imagesOf(frames)])));
}

function filmCell(image, words) {
  const canvas = h("canvas", { width: image.width, height: image.height });
  draw(canvas, image);
  return h("div", { className: "cell" }, canvas, h("span", {}, words));
}

const statusOf = ({ status, reason }) => (status === "ok" ? "scored" : `${status}${reason ? `: ${reason}` : ""}`);

function summaryOf(reply) {
  const { rank_stability: stability, members, timings_ms: timings, scored, candidates } = reply;
  return h("div", {}, facts([
    ["best plan", reply.best_index === null ? "none" : String(reply.best_index)],
    ["rank stability", stability === null ? "–" : quantity(100 * stability, "%")],
    ["scored", `${scored} of ${candidates.length}`],
    ["members of each", String(members)],
    ["answered in", quantity(timings.total / 1000, "s")],
    ["seed", String(reply.seed)],
    ...(reply.deadline_met ? [] : [["deadline", "missed"]]),
  ], "facts tiles"), h("p", { className: "hint" }, stabilityWords(stability)));
}

const stabilityWords = (stability) => (stability === null
  ? "Rank stability needs two members or more: how often the same plan is best when members are drawn again."
  : `When members are drawn again, the same plan is best in ${quantity(100 * stability)} of 100 draws.`);

// The frame of the page: tabs that load when they are opened, the model's name, the caller's key, the lost server.

import { Refusal, connection, get, key } from "./api.js";
import { showStatus } from "./status.js";
import { announce, button, field, h } from "./ui.js";

const VIEWS = [
  ["playground", "Playground"],
  ["drive", "Drive"],
  ["candidates", "Candidates"],
  ["contract", "Contract"],
  ["recent", "Recent"],
];

const NOT_YET = "This opens as soon as the server tells which models it has.";
const NO_KEY = "This server asks for a key. Whoever runs it makes one with: foreframe keys create.";

/** What every view gets: the models' contracts, the chosen one and its state schema; null until the server told. */
const context = { models: [], model: null, schema: null };
const views = new Map();

for (const [name, title] of VIEWS) addView(name, title);
addKeyForm();
showStatus(document.getElementById("status"));
connection.addEventListener("change", tellConnection);
connection.addEventListener("answer", () => context.model ?? learn());
addEventListener("hashchange", () => open(asked()));
for (const type of ["dragover", "drop"]) addEventListener(type, keepPage);
await learn();

function addView(name, title) {
  const tab = button(title, () => (location.hash = name), { id: `tab-${name}`, role: "tab", tabIndex: -1,
    "aria-controls": name, "aria-selected": "false", onkeydown: moveFocus });
  const panel = h("section", { id: name, role: "tabpanel", hidden: true, "aria-labelledby": tab.id });
  document.getElementById("tabs").append(tab);
  document.getElementById("panels").append(panel);
  views.set(name, { tab, panel, mounted: null });
}

function asked() {
  const name = location.hash.slice(1);
  return views.has(name) ? name : VIEWS[0][0];
}

function moveFocus(event) {
  const names = [...views.keys()];
  const at = names.indexOf(asked());
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const name = names.at(steps[event.key] % names.length);
  location.hash = name;
  views.get(name).tab.focus();
}

/** Show one view, and hide the others, which may have something to stop. A view is loaded once, when first opened. */
async function open(name) {
  for (const [other, view] of views) {
    const isOpen = other === name;
    const wasOpen = !view.panel.hidden;
    view.panel.hidden = !isOpen;
    view.tab.setAttribute("aria-selected", String(isOpen));
    view.tab.tabIndex = isOpen ? 0 : -1;
    if (wasOpen && !isOpen) (await view.mounted)?.hide?.();
  }
  const view = views.get(name);
  if (context.model !== null) view.mounted ??= load(name, view);
  else if (view.mounted === null) view.panel.replaceChildren(h("p", { className: "empty" }, NOT_YET));
  (await view.mounted)?.show?.();
}

async function load(name, view) {
  view.panel.setAttribute("aria-busy", "true");
  try {
    const module = await import(`./${name}.js`);
    view.panel.replaceChildren();
    return await module.mount(view.panel, context);
  } catch (error) {
    view.mounted = null;
    view.panel.replaceChildren(h("p", { className: "alert", role: "alert" },
        `This view did not open: ${error.message}`),
      button("Load the page again", () => location.reload()));
    return null;
  } finally {
    view.panel.removeAttribute("aria-busy");
  }
}

/** Ask which models there are; what is refused for want of a key opens the key's field. */
async function learn() {
  const words = document.getElementById("model");
  try {
    const { models } = await get("/v1/models", { quiet: true });
    context.models = models;
    context.model = models.find((model) => model.capabilities.includes("predict")) ?? models[0];
    context.schema = await get(`/v1/state-schemas/${encodeURIComponent(context.model.state_schema)}`, { quiet: true });
    words.textContent = `${context.model.id} · revision ${context.model.revision}`;
    toggleKeyForm(false);
  } catch (error) {
    context.model = null;
    const isLocked = error instanceof Refusal && error.status === 401;
    words.textContent = isLocked ? "a key is needed" : error.message;
    if (isLocked) toggleKeyForm(true, key.read() ? error.message : NO_KEY);
    else if (error instanceof Refusal) setTimeout(learn, error.retryAfterMs ?? 2000);
  }
  await open(asked());
}

/** A file that is dropped beside its place does not replace the page, and what was typed into it. */
function keepPage(event) {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
}

function tellConnection() {
  const words = document.getElementById("lost");
  words.hidden = connection.isUp;
  words.textContent = connection.isUp ? ""
      : "The server does not answer. What you entered is kept; asking again by itself.";
  if (connection.isUp) announce("The server answers again.");
}

function addKeyForm() {
  const form = document.getElementById("key-form");
  const control = h("input", { type: "password", name: "key", autocomplete: "off", spellcheck: false,
      value: key.read() });
  const slot = field("Key, as id.secret; kept in this tab until it is closed", control);
  form.append(slot, h("button", { type: "submit", className: "first" }, "Use"), button("Forget", () => {
    control.value = "";
    key.write("");
    learn();
  }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.write(control.value.trim());
    learn();
  });
  document.getElementById("key-button").addEventListener("click", () => toggleKeyForm(form.hidden));
}

function toggleKeyForm(isOpen, refusal = "") {
  const form = document.getElementById("key-form");
  const words = form.querySelector(".refused");
  form.hidden = !isOpen;
  words.textContent = refusal;
  words.hidden = !refusal;
  document.getElementById("key-button").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) form.querySelector("input").focus();
}

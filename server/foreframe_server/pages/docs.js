// Renders the OpenAPI document: calls, and the values they take and give.

const node = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children.filter((child) => child !== null));
  return made;
};
const nameOf = (reference) => reference.split("/").pop();
const linkTo = (reference) => node("a", { href: `#${nameOf(reference)}` }, nameOf(reference));

/** Text in which backticks mark code. */
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? node("code", {}, part) : part));

function typeOf(schema) {
  if (!schema) return "nothing";
  if (schema.$ref) return linkTo(schema.$ref);
  if (schema.anyOf) return joined(schema.anyOf.map(typeOf), " or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" · ");
  if (schema.type === "array") return joined(["list of ", typeOf(schema.items)], "");
  if (schema.additionalProperties) return joined(["map to ", typeOf(schema.additionalProperties)], "");
  return schema.contentEncoding ? `${schema.type} (${schema.contentEncoding})` : schema.type ?? "anything";
}
function joined(parts, between) {
  const span = node("span");
  parts.forEach((part, index) => span.append(...(index ? [between, part] : [part])));
  return span;
}
function bounds(schema) {
  const shown = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", maxLength: "length ≤", maxItems: "items ≤",
      minItems: "items ≥" };
  const all = [schema, ...(schema.anyOf ?? [])];
  const known = (one) => Object.keys(shown).filter((key) => key in one);
  const found = all.flatMap((one) => known(one).map((key) => `${shown[key]} ${one[key]}`));
  if (schema.default !== undefined && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}
function fields(schema) {
  const required = new Set(schema.required ?? []);
  return node("table", {}, ...Object.entries(schema.properties ?? {}).map(([name, field]) => node("tr", {},
    node("td", {}, node("code", {}, name), required.has(name) ? " *" : ""),
    node("td", {}, typeOf(field)),
    node("td", {}, ...prose([bounds(field), field.description].filter(Boolean).join(". "))))));
}
function contents(title, content) {
  return node("div", {}, ...Object.entries(content ?? {}).map(([media, body]) =>
    node("div", {}, node("span", { className: "quiet" }, `${title} `), node("code", {}, media), " ",
        typeOf(body.schema))));
}
function operation(method, path, described) {
  const parameters = (described.parameters ?? []).map((one) => node("div", {}, node("code", {}, one.name),
      ` in ${one.in}, `, typeOf(one.schema)));
  const replies = Object.entries(described.responses).map(([status, reply]) => contents(status, reply.content));
  return node("details", {},
    node("summary", {}, node("span", { className: "method" }, method.toUpperCase()), node("code", {}, path), " ",
        described.summary ?? ""),
    node("p", {}, ...prose(described.description ?? "")), ...parameters,
    contents("takes", described.requestBody?.content), ...replies);
}
function schemaBlock([name, schema]) {
  return node("details", { id: name }, node("summary", {}, node("code", {}, name)),
      node("p", {}, ...prose(schema.description ?? "")),
    schema.enum ? node("p", {}, typeOf(schema)) : fields(schema));
}
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) { target.open = true; target.scrollIntoView(); }
}
fetch("/openapi.json").then((reply) => reply.json()).then((api) => {
  const operations = Object.entries(api.paths).flatMap(([path,
      methods]) => Object.entries(methods).map(([method, one]) => operation(method, path, one)));
  document.querySelector("main").replaceChildren(node("p", {}, ...prose(api.info.description)),
    node("h2", {}, "Calls"), ...operations, node("h2", {}, "Values"),
        ...Object.entries(api.components.schemas).map(schemaBlock));
  addEventListener("hashchange", openTarget);
  openTarget();
}).catch(() => document.querySelector("main").replaceChildren(node("p", {}, "The API document could not be loaded.")));

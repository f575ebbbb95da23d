// /openapi.json, readable: endpoints, what they take, what they answer, what goes wrong.

import { Refused, ask } from "./api.js";
import { element } from "./chart.js";

const JSON_TYPE = "application/json";
const place = document.getElementById("endpoints");

try {
  place.replaceChildren(...page(await ask("openapi.json")));
} catch (error) {
  const why = error.status === 401 ? "This server asks for a token: give it on its first page, then come back."
    : error instanceof Refused ? error.message : "The server does not answer.";
  place.replaceChildren(element("p", { className: "note", role: "alert", textContent: why }));
}

function page(api) {
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })));
  const groups = new Map();
  for (const each of operations) {
    const name = each.tags?.[0] ?? "other";
    groups.set(name, [...(groups.get(name) ?? []), each]);
  }
  return [
    text("p", api.info.description),
    element("p", { className: "hint" }, `Version ${api.info.version}. For programs: `,
      element("a", { href: "openapi.json", textContent: "openapi.json" }), "."),
    element("p", {}, "What is refused is answered by ",
      element("code", { textContent: typeOf(api.components.schemas.ErrorAnswer, api) }), "."),
    ...[...groups].flatMap(([name, those]) => [
      element("h2", { textContent: name[0].toUpperCase() + name.slice(1) }),
      ...those.map((each) => endpoint(each, api)),
    ]),
  ];
}

function endpoint({ path, method, description = "", requestBody, responses }, api) {
  const [first, ...more] = description.split("\n\n");
  const body = requestBody && resolved(requestBody.content[JSON_TYPE].schema, api);
  return element("details", {},
    element("summary", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` }),
      text("span", first)),
    ...more.map((each) => text("p", each)),
    body && element("pre", { tabIndex: 0, textContent: example(path, body) }),
    body && table("Body", ["field", "type", "meaning"], Object.entries(body.properties).map(([name, field]) =>
      [name, typeOf(field, api), [field.description, usual(field, body.required?.includes(name))]
        .filter(Boolean).join(" ")])),
    table("Answers", ["status", "type", "meaning"], Object.entries(responses).map(([status, answer]) =>
      [status, status < 400 ? Object.entries(answer.content ?? {}).map(([media, { schema }]) =>
        media === JSON_TYPE ? typeOf(schema, api) : media).join(", ") : "", answer.description])));
}

function example(path, { properties, required = [] }) {
  const body = Object.fromEntries(required.map((name) => [name, properties[name].examples?.[0] ?? "…"]));
  const url = new URL(path.slice(1), document.baseURI);
  return `curl ${url} \\\n  -H 'Content-Type: ${JSON_TYPE}' \\\n  -d '${JSON.stringify(body)}'`;
}

function usual(field, isRequired) {
  if (isRequired) return "Required.";
  return field.default == null ? "" : `Default: ${JSON.stringify(field.default)}.`;
}

/** Such as `string | string[]`. */
function typeOf(schema = {}, api) {
  const found = resolved(schema, api);
  if (found.anyOf) return found.anyOf.map((each) => typeOf(each, api)).join(" | ");
  if (found.enum) return found.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.type === "array") {
    const of = typeOf(found.items, api);
    return of.includes(" ") ? `(${of})[]` : `${of}[]`;
  }
  if (found.properties) return `{${Object.keys(found.properties).join(", ")}}`;
  return found.type ?? "any";
}

function resolved(schema, api) {
  const name = schema.$ref?.match(/^#\/components\/schemas\/(\w+)$/)?.[1];
  return name ? api.components.schemas[name] : schema;
}

/** A text in which `code` stands between backticks. */
function text(name, content) {
  return element(name, {}, ...content.split("`").map((each, i) =>
    i % 2 ? element("code", { textContent: each }) : each.replaceAll("\n", " ")));
}

function table(title, heads, rows) {
  return element("table", {}, element("caption", { textContent: title }),
    element("thead", {}, element("tr", {}, ...heads.map((each) => element("th", { textContent: each })))),
    element("tbody", {}, ...rows.map(([name, type, meaning]) => element("tr", {},
      element("td", {}, element("code", { textContent: name })),
      element("td", {}, element("code", { textContent: type })),
      element("td", { textContent: meaning })))));
}

// What is put on the page? Elements whose text is text: markup in somebody else's name is shown, never read.

// el("td", { class: "wide", onclick: f, title: "x" }, "text", node, null): attributes by name, listeners by on...
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) setProp(node, key, value);
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Put these in a node's place of what it has; null and false are nothing.
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

function setProp(node, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
  else if (key === "value" || key === "checked" || key === "disabled" || key === "selected") node[key] = value;
  else if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
  else node.setAttribute(key, value === true ? "" : value);
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// A labelled control: the text names it for the eye and for a screen reader.
export const labelled = (text, control) => el("label", { class: "labelled" }, el("span", {}, text), control);

// options: [[value, text]]
export function select(options, value, change, props) {
  const made = el("select", { ...props, onchange: (event) => change(event.target.value) });
  for (const [v, text] of options) made.add(new Option(text, v, false, String(v) === String(value)));
  return made;
}

// The same select with other options; what was chosen stays chosen where it still can be.
export function reselect(node, options, value) {
  const now = [...node.options].map((o) => `${o.value}\n${o.text}`).join("\n\n");
  if (now !== options.map(([v, text]) => `${v}\n${text}`).join("\n\n")) {
    node.replaceChildren();
    for (const [v, text] of options) node.add(new Option(text, v));
  }
  if (value !== undefined) node.value = String(value);
}

// A name that may be broken where its parts meet, and nowhere else.
export const breakable = (text) =>
  String(text)
    .split(/(?<=[._|/·])/)
    .flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));

export const tick = (text, checked, change, props) =>
  el(
    "label",
    { class: "tick" },
    el("input", { type: "checkbox", checked, onchange: (event) => change(event.target.checked), ...props }),
    el("span", {}, text),
  );

export const button = (text, onclick, props) => el("button", { type: "button", onclick, ...props }, text);

// A section of a view: a heading, a sentence on how to read it, and what is there.
export function card(id, title, note, ...children) {
  return el(
    "section",
    { class: "card", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    note ? el("p", { class: "note" }, note) : null,
    ...children,
  );
}

// A log's lines, each with what of it has no room below its beginning; `mine(line)`: which are marked.
export function fillLog(node, lines, mine = () => false) {
  fill(
    node,
    lines.map((line) => el("span", { class: mine(line) ? "line mine" : "line" }, `${line}\n`)),
  );
}

export const empty = (...text) => el("p", { class: "empty" }, text);

// rows: [[cell, ...]]; a cell is text, a node, or [text, small print]. The first column heads its row.
export function plainTable(titles, rows, caption) {
  const cell = (made, content) => {
    if (Array.isArray(content)) made.append(...[content[0]].flat(), content[1] ? el("small", {}, content[1]) : "");
    else made.append(content === null || content === undefined ? "–" : content);
    return made;
  };
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "hidden" }, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          titles.map((t) => el("th", { scope: "col" }, t)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            {},
            row.map((content, i) => cell(i ? el("td") : el("th", { scope: "row" }), content)),
          ),
        ),
      ),
    ),
  );
}

// How are ten thousand rows looked through? A page at a time, sorted by a column, the rows chosen elsewhere.
import { button, el } from "./dom.js";
import { whole } from "./format.js";
import { explains } from "./glossary.js";

const SHOWN = 50;

// columns: [{title, word: what of the glossary it is, value(i) to sort by, cell(i) -> text | node | [text, small
// print]}]; open(i) where a row leads somewhere; dense: small print below what it belongs to
export function pagedTable(caption, columns, open, dense = false) {
  let rows = [],
    page = 0,
    by = null,
    down = false,
    chosen = -1;
  const body = el("tbody"),
    said = el("span", { class: "soft", role: "status" });
  const heads = columns.map((c, k) =>
    el(
      "th",
      { scope: "col" },
      button(c.title, () => sort(k), { class: "sort", ...(c.word ? explains(c.word) : {}) }),
    ),
  );
  const back = button("Previous", () => turn(-1)),
    forth = button("Next", () => turn(1));
  const node = el(
    "div",
    {},
    el(
      "div",
      { class: "scroll tall paged", tabindex: "0", role: "region", "aria-label": caption },
      el(
        "table",
        dense ? { class: "dense" } : {},
        el("caption", { class: "hidden" }, caption),
        el("thead", {}, el("tr", {}, heads)),
        body,
      ),
    ),
    el("div", { class: "pager" }, said, back, forth),
  );

  function sort(k) {
    [by, down] = by === k ? [down ? null : k, !down] : [k, false];
    if (by === null) down = false;
    page = 0;
    show();
  }

  function turn(step) {
    page += step;
    show();
  }

  function sorted() {
    if (by === null) return rows;
    const value = columns[by].value,
      sign = down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return 0;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return (x < y ? -1 : 1) * sign;
    });
  }

  function show() {
    const all = sorted(),
      pages = Math.max(1, Math.ceil(all.length / SHOWN));
    page = Math.min(Math.max(0, page), pages - 1);
    body.replaceChildren(...all.slice(page * SHOWN, (page + 1) * SHOWN).map(line));
    said.textContent = all.length
      ? `${whole(page * SHOWN + 1)}–${whole(Math.min(all.length, (page + 1) * SHOWN))} of ${whole(all.length)}`
      : "none";
    back.disabled = page === 0;
    forth.disabled = page === pages - 1;
    heads.forEach((head, k) => head.setAttribute("aria-sort", by === k ? (down ? "descending" : "ascending") : "none"));
  }

  function line(i) {
    const made = el(
      "tr",
      i === chosen ? { class: "chosen" } : {},
      columns.map((c, k) => {
        const content = c.cell(i),
          [text, small] = Array.isArray(content) ? content : [content, null];
        return el(
          k ? "td" : "th",
          k ? {} : { scope: "row" },
          text === null || text === undefined ? "–" : text,
          small ? el("small", {}, small) : null,
        );
      }),
    );
    if (open)
      made.addEventListener("click", (event) => {
        if (!event.target.closest("a, button, input")) open(i);
      });
    return made;
  }

  return {
    node,
    show(these, mark = -1) {
      rows = these;
      chosen = mark;
      show();
    },
  };
}

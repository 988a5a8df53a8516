// What is said by a few marks? A line without axes, and bars of shares: no library, no script on hover.
import { el, svg } from "../dom.js";
import { number, unshared } from "../format.js";

export const pill = (status) => el("span", { class: `pill ${/^[a-z]+$/.test(status) ? status : ""}` }, status);

// values: hypervolume over candidates answered; null where they are too few for a line
export function spark(values, width = 132, height = 30) {
  const known = (values || []).filter((v) => v !== null);
  if (known.length < 2) return null;
  const low = Math.min(0, ...known),
    span = Math.max(...known) - low || 1;
  const across = (i) => (i / (known.length - 1)) * (width - 4) + 2,
    up = (v) => height - 3 - ((v - low) / span) * (height - 6);
  const at = (v, i) => `${across(i).toFixed(1)},${up(v).toFixed(1)}`;
  const line = known.map(at).join(" ");
  return svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "img",
      "aria-label": `hypervolume from ${number(known[0])} to ${number(known.at(-1))}`,
    },
    svg("polygon", { points: `2,${height - 3} ${line} ${width - 2},${height - 3}` }),
    svg("polyline", { points: line }),
  );
}

export function progress(answered, evaluations, said) {
  const share = evaluations ? Math.min(1, answered / evaluations) : 0;
  return el(
    "div",
    {
      class: "progress",
      role: "progressbar",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(100 * share),
      "aria-label": said,
    },
    el("div", { style: { width: `${(100 * share).toFixed(1)}%` } }),
  );
}

// rows: [{name, importance}], shares of 1
export function shares(rows) {
  const most = Math.max(1e-12, ...rows.map((r) => r.importance)),
    names = unshared(rows.map((r) => r.name));
  return el(
    "ul",
    { class: "shares" },
    rows.map((r, i) =>
      el(
        "li",
        {},
        el("span", { class: "name", title: r.name }, names[i]),
        el(
          "span",
          { class: "track", "aria-hidden": "true" },
          el("span", { style: { width: `${((100 * r.importance) / most).toFixed(1)}%` } }),
        ),
        el("span", { class: "value" }, `${(100 * r.importance).toFixed(1)} %`),
      ),
    ),
  );
}

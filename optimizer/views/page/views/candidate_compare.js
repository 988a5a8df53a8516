// How does a candidate differ from another, objective by objective and item by item?
import { drawItems } from "../charts/items.js";
import { el, empty, fill, labelled, plainTable, reselect, select } from "../dom.js";
import { cut, number, plusMinus, probability, untold } from "../format.js";
import { erase } from "../plot.js";

const SPLITS = [
  ["calibration", "calibration"],
  ["heldout", "held-out"],
];

export function comparisonPart(run) {
  const words = el("div", {}),
    figure = el("div", { class: "figure short" });
  let metric = null,
    split = "calibration",
    found = null;
  const which = select([], "", (v) => {
      metric = v;
      bars();
    }),
    where = select(SPLITS, split, (v) => {
      split = v;
      bars();
    });
  const controls = el("div", { class: "controls" }, labelled("items of", which), labelled("on", where));
  const node = el("div", {}, words, controls, figure);

  function bars() {
    const items = found && found.items && found.items[split],
      values = items && items[metric];
    erase(figure);
    figure.replaceChildren();
    if (!values || !values.length)
      return figure.replaceChildren(empty("No results of single items were kept for both here."));
    const goal = (run.objectives.find((o) => o.name === metric) || {}).goal;
    return drawItems(figure, metric, values, goal === "min" ? -1 : 1);
  }

  // now: what is said of this one and another, or null
  function draw(now) {
    found = now;
    controls.hidden = figure.hidden = !found;
    if (!found)
      return words.replaceChildren(empty("Choose a candidate to see on which items this one wins and loses."));
    const metrics = [...new Set(SPLITS.flatMap(([s]) => Object.keys((found.items && found.items[s]) || {})))];
    metric = metrics.includes(metric) ? metric : (metrics[0] ?? null);
    reselect(
      which,
      metrics.map((name) => [name, cut(name, 60)]),
      metric ?? "",
    );
    fill(words, differences(run, found), ...SPLITS.map(([s, said]) => dominance(found[s], said)));
    return bars();
  }

  return {
    node,
    draw,
    dispose() {
      erase(figure);
    },
  };
}

function differences(run, found) {
  const rows = run.objectives
    .flatMap((o) =>
      SPLITS.map(([s, said]) => {
        const d = found[s] && found[s].objectives[o.name];
        if (!d) return null;
        const winner = d.better === "a" ? "this one" : d.better === "b" ? "the other" : "alike";
        const mark = untold(d.value, d.stderr) ? "not told apart" : winner;
        return [
          cut(o.name, 60),
          said,
          [(d.value > 0 ? "+" : "") + number(d.value), plusMinus(d.stderr) + (d.paired ? "" : " (unpaired)")],
          mark,
          ...["wins", "losses", "ties"].map((k) => (d[k] === null || d[k] === undefined ? null : String(d[k]))),
        ];
      }),
    )
    .filter(Boolean);
  return plainTable(
    ["objective", "items", "this less other", "better", "wins", "losses", "ties"],
    rows,
    "Paired differences",
  );
}

const dominance = (there, said) =>
  there && there.a_dominates_b !== null
    ? el(
        "p",
        { class: "soft" },
        `By the ${said} items this one dominates the other with probability ` +
          `${probability(there.a_dominates_b)}, the other this one with ` +
          `${probability(there.b_dominates_a)}.`,
      )
    : "";

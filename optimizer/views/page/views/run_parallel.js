// Which values go together, and which candidates are left of a few ranges? Brushes, and fields that say the same.
import { keptBy, parallelChart } from "../charts/parallel.js";
import { button, card, el, empty } from "../dom.js";
import { cut, unshared, whole } from "../format.js";
import { term } from "../glossary.js";

const MOST = 5; // objectives among the axes

// selected(kept) at the end of a drag; kept: a Uint8Array over the places of the table, null where nothing is brushed
export function parallelPart(data, selected) {
  const ranges = new Map(),
    figure = el("div", { class: "figure tall parallel" }),
    fields = el("div", { class: "ranges" }),
    said = el("p", { class: "soft", role: "status" });
  const node = card(
    "parallel",
    "Parallel coordinates",
    [
      "Objectives, then the ",
      term("coordinate", "coordinates"),
      " that matter most. Drag along an axis to keep only what passes through: front and table follow. A click " +
        "clears an axis.",
    ],
    figure,
    said,
    el("details", {}, el("summary", {}, "Ranges as numbers"), fields),
  );
  let axes = [],
    rows = [],
    inputs = new Map(),
    last = data,
    chart = null,
    waiting = 0;

  // Gives what of `now` is kept; `selected` is not told.
  function update(now) {
    last = now;
    rows = now.table.numbers.flatMap((_, i) => (now.table.rank[i] < 0 ? [] : [i]));
    axes = axesOf(now, rows);
    if (!now.table.numbers.length) {
      figure.replaceChildren(empty("Nothing is answered yet: lines appear with the answers."));
      return null;
    }
    chart = chart || parallelChart(figure, { brushed, done: () => apply(true) });
    fill();
    const kept = apply(false);
    draw(kept);
    return kept && spread(kept);
  }

  function draw(kept) {
    chart.draw({ axes, front: rows.map((i) => last.table.front[i]), ranges, kept });
  }

  // At every move of a drag the lines follow; the front and the table at its end.
  function brushed(name, range) {
    if (range) ranges.set(name, range);
    else ranges.delete(name);
    if (!waiting)
      waiting = requestAnimationFrame(() => {
        waiting = 0;
        fill(true);
        chart.lines(apply(false));
      });
  }

  function apply(tell) {
    const kept = keptBy(axes, ranges),
      count = kept === null ? null : kept.reduce((a, b) => a + b, 0);
    said.replaceChildren(
      kept === null ? "" : `${whole(count)} of ${whole(kept.length)} candidates kept. `,
      kept === null ? "" : button("Clear", clear, { class: "link" }),
    );
    if (tell) selected(kept && spread(kept));
    return kept;
  }

  // over all places of the table
  function spread(kept) {
    const all = new Uint8Array(last.table.numbers.length);
    rows.forEach((i, j) => {
      all[i] = kept[j];
    });
    return all;
  }

  function clear() {
    ranges.clear();
    fill(true);
    draw(apply(true));
  }

  // Two fields an axis; made anew when the axes are others, else only their numbers change.
  function fill(values = false) {
    const names = axes.map((a) => a.name);
    if (names.join("\n") !== [...inputs.keys()].join("\n")) {
      inputs = new Map(
        names.map((name) => [
          name,
          [0, 1].map((end) =>
            el("input", {
              type: "number",
              step: "any",
              class: "short",
              "aria-label": `${end ? "Highest" : "Lowest"} ${name}`,
              onchange: () => typed(name),
            }),
          ),
        ]),
      );
      fields.replaceChildren(
        ...[...inputs].map(([name, pair]) =>
          el("div", {}, el("span", { class: "name", title: name }, cut(name, 40)), pair[0], "to", pair[1]),
        ),
      );
      values = true;
    }
    if (values)
      for (const [name, pair] of inputs)
        pair.forEach((input, end) => {
          input.value =
            ranges.has(name) && Number.isFinite(ranges.get(name)[end])
              ? String(Number(ranges.get(name)[end].toPrecision(6)))
              : "";
        });
  }

  function typed(name) {
    const axis = axes.find((a) => a.name === name),
      [low, high] = inputs.get(name).map((input) => input.value);
    const known = axis.values.filter((v) => v !== null),
      ends = [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
    if (low === "" && high === "") ranges.delete(name);
    else ranges.set(name, [low === "" ? ends[0] : Number(low), high === "" ? ends[1] : Number(high)]);
    draw(apply(true));
  }

  return {
    node,
    update,
    brushed: () => [...ranges.keys()],
    dispose() {
      cancelAnimationFrame(waiting);
      if (chart) chart.dispose();
    },
  };
}

// Of the places `rows`; a coordinate that is not known yet of a candidate is null.
function axesOf({ run, table, coordinates }, rows) {
  const labels = new Map((run.axes || []).map((a) => [a.name, a.labels])),
    place = new Map(coordinates.numbers.map((n, i) => [n, i]));
  const short = unshared(coordinates.names),
    own = coordinates.names.map((name, k) => ({
      name,
      short: short[k],
      labels: labels.get(name) || null,
      values: rows.map((i) => coordinates.columns[k][place.get(table.numbers[i])] ?? null),
    }));
  return [
    ...run.objectives
      .slice(0, MOST)
      .map((o, k) => ({ name: o.name, values: rows.map((i) => table.values[k][i]), labels: null })),
    ...own,
  ];
}

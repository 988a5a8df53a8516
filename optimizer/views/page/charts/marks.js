// Which marks stand by the candidates of a front? Models as they are, threads between two scores of one, and a ring.
import { cut, number, plusMinus } from "../format.js";
import { colour, plain } from "../plot.js";
import { unseen } from "./framing.js";

export function describe(objectives, label, values, errors, where, stage) {
  return [
    `${plain(cut(label, 60))} · ${where}`,
    ...(stage ? [plain(cut(stage, 60))] : []),
    ...objectives
      .slice(0, 12)
      .map((o, k) => `${plain(cut(o.name, 50))} ${number(values[k])}${plusMinus(errors && errors[k])}`),
  ].join("<br>");
}

export function trace(name, values, marker, extra, solid) {
  const type = solid ? "scatter3d" : "scatter";
  return { type, mode: "markers", name, marker, ...Object.fromEntries(values.map((v, a) => ["xyz"[a], v])), ...extra };
}

export const named = (labels, keys) =>
  labels
    ? {
        mode: "markers+text",
        text: keys.map((key) => labels.get(key)[0]),
        textposition: keys.map((key) => labels.get(key)[1]),
        textfont: { size: 11, color: colour("--soft") },
        cliponaxis: false,
      }
    : {};

export function models(objectives, references, held, axes, labels, solid, tint) {
  const hover = (rows, key, errors, where) =>
    rows.map((r) => describe(objectives, r.label, r[key], r[errors], where, "as it is, unmerged"));
  const made = (name, rows, key, errors, symbol, extra) =>
    trace(
      name,
      axes.map((k) => rows.map((r) => r[key][k])),
      { color: tint, size: solid ? 5 : 10, symbol, line: { width: 2, color: tint } },
      {
        customdata: rows.map((r) => r.label),
        hoverinfo: "text",
        hovertext: hover(rows, key, errors, key === "values" ? "calibration items" : "held-out items"),
        ...extra,
      },
      solid,
    );
  if (!references.length) return [];
  return [
    made(
      "models as they are",
      references,
      "values",
      "stderr",
      "square",
      named(
        labels,
        references.map((r) => r.label),
      ),
    ),
    ...(held.length
      ? [
          made(
            "models, held-out",
            held,
            "heldout",
            "heldout_stderr",
            "square-open",
            named(
              labels,
              held.map((r) => unseen(r.label)),
            ),
          ),
        ]
      : []),
  ];
}

// One line with gaps from each score on calibration items to that on held-out ones; nothing where there are none.
export function tied(table, rows, axes, solid, tint) {
  const values = axes.map((k) => rows.flatMap((i) => [table.values[k][i], table.heldout[k][i], null]));
  return rows.length
    ? [
        trace(
          "same candidate",
          values,
          {},
          { hoverinfo: "skip", mode: "lines", opacity: 0.35, line: { color: tint, width: 1 } },
          solid,
        ),
      ]
    : [];
}

export function ring(table, chosen, axes, solid) {
  const i = chosen === null ? -1 : table.numbers.indexOf(chosen);
  if (i < 0) return [];
  return [
    trace(
      "chosen",
      axes.map((k) => [table.values[k][i]]),
      {
        color: colour("--ink"),
        size: solid ? 9 : 18,
        symbol: "circle-open",
        line: { width: 2, color: colour("--ink") },
      },
      { hoverinfo: "skip" },
      solid,
    ),
  ];
}

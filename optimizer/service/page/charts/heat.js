// What is a candidate made of? Its coefficients by group and expert, or the model that each group comes from.
import { cut } from "../format.js";
import { colour, draw, plain } from "../plot.js";

const HIGH = 60; // rows that are drawn at their full height

export const heatHeight = (groups) => Math.max(220, 96 + 22 * Math.min(groups, HIGH));

// rows: (groups, experts) of numbers; `difference`: of two candidates, so that 0 is the middle
export function drawHeat(node, groups, experts, rows, difference = false) {
  const flat = rows.flat(), bound = flat.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-9), negative = difference || flat.some((v) => v < 0);
  node.style.setProperty("height", `${heatHeight(groups.length)}px`);
  const middle = colour("--paper"), scale = negative ? [[0, colour("--amber")], [0.5, middle], [1, colour("--accent")]] : [[0, middle], [1, colour("--accent")]];
  return draw(node, [{
    type: "heatmap", z: rows, x: experts.map((e) => plain(cut(e, 24))), y: groups.map((g) => plain(cut(g, 36))), xgap: 2, ygap: 2, zmin: negative ? -bound : 0, zmax: bound, colorscale: scale,
    texttemplate: groups.length <= 40 && experts.length * 56 <= node.clientWidth - 160 ? "%{z:.2f}" : undefined,
    hovertemplate: "%{y}<br>%{x}: %{z:.4f}<extra></extra>", colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: colour("--soft"), size: 11 } },
  }], { xaxis: { type: "category", showgrid: false, side: "top" }, yaxis: { type: "category", autorange: "reversed", showgrid: false }, margin: { l: 60, r: 10, t: 40, b: 14 } },
  `${difference ? "Differences of coefficients" : "Coefficients"} of ${groups.length} groups and ${experts.length} experts.`);
}

// from: by group the place of a model (0 the base, k + 1 expert k): a mark in that model's column
export function drawOrigins(node, groups, models, from) {
  node.style.setProperty("height", `${heatHeight(groups.length)}px`);
  return draw(node, [{
    type: "heatmap", z: from.map((k) => models.map((_, m) => Number(m === k))), x: models.map((m) => plain(cut(m, 24))), y: groups.map((g) => plain(cut(g, 36))), zmin: 0, zmax: 1, showscale: false,
    xgap: 2, ygap: 2, colorscale: [[0, colour("--mark")], [1, colour("--accent")]],
    customdata: from.map((k) => models.map(() => plain(models[k]))), hovertemplate: "%{y} comes from %{customdata}<extra></extra>",
  }], { xaxis: { type: "category", showgrid: false, side: "top" }, yaxis: { type: "category", autorange: "reversed", showgrid: false }, margin: { l: 60, r: 10, t: 40, b: 14 } },
  `Which model each of ${groups.length} groups comes from.`);
}

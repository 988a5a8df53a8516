// What is a candidate made of? Its coefficients by group and expert, or the model that each group comes from.
import { cut } from "../format.js";
import { colour, draw, plain } from "../plot.js";

const HIGH = 60; // rows that are drawn at their full height

// Axes of numbers with names at them: as categories Plotly would look names up among what every object has, such as
// `constructor`. As many names as there is room for.
function named(names, length, room) {
  const step = Math.max(1, Math.ceil(names.length / Math.max(1, room))),
    places = names.map((_, i) => i).filter((i) => i % step === 0);
  return {
    tickmode: "array",
    tickvals: places,
    ticktext: places.map((i) => plain(cut(names[i], length))),
    showgrid: false,
    zeroline: false,
  };
}

const axes = (node, groups, across) => ({
  xaxis: { ...named(across, 24, (node.clientWidth - 160) / 16), side: "top" },
  yaxis: { ...named(groups, 36, HIGH), autorange: "reversed" },
  margin: { l: 60, r: 10, t: 40, b: 14 },
});

const counted = (names) => names.map((_, i) => i);

const heatHeight = (groups) => Math.max(220, 96 + 22 * Math.min(groups, HIGH));

// rows: (groups, experts) of numbers; `difference`: of two candidates, so that 0 is the middle
export function drawHeat(node, groups, experts, rows, difference = false) {
  const flat = rows.flat(),
    bound = flat.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-9),
    negative = difference || flat.some((v) => v < 0);
  node.style.setProperty("height", `${heatHeight(groups.length)}px`);
  const middle = colour("--paper"),
    scale = negative
      ? [
          [0, colour("--amber")],
          [0.5, middle],
          [1, colour("--accent")],
        ]
      : [
          [0, middle],
          [1, colour("--accent")],
        ];
  return draw(
    node,
    [
      {
        type: "heatmap",
        z: rows,
        x: counted(experts),
        y: counted(groups),
        customdata: groups.map((g) => experts.map((e) => `${plain(cut(g, 36))}<br>${plain(cut(e, 24))}`)),
        xgap: 2,
        ygap: 2,
        zmin: negative ? -bound : 0,
        zmax: bound,
        colorscale: scale,
        texttemplate: groups.length <= 40 && experts.length * 56 <= node.clientWidth - 160 ? "%{z:.2f}" : undefined,
        hovertemplate: "%{customdata}: %{z:.4f}<extra></extra>",
        colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: colour("--soft"), size: 11 } },
      },
    ],
    axes(node, groups, experts),
    `${difference ? "Differences of coefficients" : "Coefficients"} of ${groups.length} groups and ` +
      `${experts.length} experts.`,
  );
}

// from: by group the place of a model (0 the base, k + 1 expert k): a mark in that model's column
export function drawOrigins(node, groups, models, from) {
  node.style.setProperty("height", `${heatHeight(groups.length)}px`);
  return draw(
    node,
    [
      {
        type: "heatmap",
        z: from.map((k) => models.map((_, m) => Number(m === k))),
        x: counted(models),
        y: counted(groups),
        zmin: 0,
        zmax: 1,
        showscale: false,
        xgap: 2,
        ygap: 2,
        colorscale: [
          [0, colour("--mark")],
          [1, colour("--accent")],
        ],
        customdata: from.map((k, g) => models.map(() => `${plain(cut(groups[g], 36))} comes from ${plain(models[k])}`)),
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ],
    axes(node, groups, models),
    `Which model each of ${groups.length} groups comes from.`,
  );
}

// What did the search gain, and when? Hypervolume over candidates answered, in a colour a stage.
import { cut, number } from "../format.js";
import { colour, draw, plain, STAGES } from "../plot.js";

export function stageColours(stages) {
  return new Map([...new Set(stages)].map((name, i) => [name, STAGES[Math.min(i, STAGES.length - 1)]]));
}

// curve: {answered, hypervolume, epsilon, stage, stages}
export function drawCurve(node, curve) {
  const colours = stageColours(curve.stages),
    names = curve.stage.map((s) => curve.stages[s] ?? "");
  const traces = [];
  for (let start = 0; start < names.length;) {
    let end = start;
    while (end < names.length && names[end] === names[start]) end++;
    const from = Math.max(0, start - 1); // begin where the stage before ended
    traces.push({
      x: curve.answered.slice(from, end),
      y: curve.hypervolume.slice(from, end),
      name: plain(cut(names[start], 40)),
      mode: end - from > 1 ? "lines" : "markers",
      line: { shape: "hv", width: 2.2, color: colour(colours.get(names[start])) },
      marker: { color: colour(colours.get(names[start])) },
      hovertemplate: `%{x} answered<br>hypervolume %{y:.3f}<br>${plain(cut(names[start], 40))}<extra></extra>`,
    });
    start = end;
  }
  traces.push({
    x: curve.answered,
    y: curve.epsilon,
    name: "epsilon",
    yaxis: "y2",
    line: { shape: "hv", color: colour("--soft"), dash: "dot", width: 1.2 },
    hovertemplate: "epsilon %{y:.3f}<extra></extra>",
  });
  const last = curve.hypervolume.at(-1);
  return draw(
    node,
    traces,
    {
      xaxis: { title: { text: "candidates answered", standoff: 8 } },
      yaxis: { title: { text: "hypervolume" }, rangemode: "tozero" },
      yaxis2: {
        title: { text: "epsilon" },
        overlaying: "y",
        side: "right",
        showgrid: false,
        rangemode: "tozero",
        tickmode: "auto",
        nticks: 5,
      },
      margin: { l: 56, r: 56, t: 12, b: 46 },
    },
    `Hypervolume over candidates answered; now ${number(last)} after ${curve.answered.at(-1) ?? 0}.`,
  );
}

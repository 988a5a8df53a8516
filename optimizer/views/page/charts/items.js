// On which items is one candidate better than another? Differences item by item, the greatest gain first.
import { cut, number } from "../format.js";
import { colour, draw, plain } from "../plot.js";

// differences: a less b by item, null for one that says nothing; sign: 1 where higher is better, -1 where lower is
export function drawItems(node, metric, differences, sign) {
  const rows = differences
    .filter((v) => v !== null)
    .map((v) => sign * v + 0)
    .sort((a, b) => b - a); // above 0 is better
  const wins = rows.filter((v) => v > 0).length,
    losses = rows.filter((v) => v < 0).length;
  const [up, down] = [colour("--accent"), colour("--amber")];
  return draw(
    node,
    [
      {
        type: "bar",
        x: rows.map((_, i) => i + 1),
        y: rows,
        hovertemplate: "%{y:.4f}<extra></extra>",
        marker: { color: rows.map((v) => (v > 0 ? up : down)), line: { width: 0 } },
      },
    ],
    {
      bargap: 0,
      xaxis: { title: { text: "items, the greatest gain first", standoff: 8 } },
      yaxis: { title: { text: `gain in ${plain(cut(metric, 26))}` } },
    },
    `${metric}: better on ${wins} items, worse on ${losses}, alike on ${rows.length - wins - losses}; ` +
      `mean gain ${number(rows.reduce((a, b) => a + b, 0) / (rows.length || 1))}.`,
  );
}

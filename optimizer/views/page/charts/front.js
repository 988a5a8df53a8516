// How do candidates trade off? Two or three objectives; calibration filled, held-out open, dominated faint.
import { tick } from "../dom.js";
import { better, cut } from "../format.js";
import { colour, draw, plain } from "../plot.js";
import { cloud } from "./cloud.js";
import { framing, labelOf, placed, row, unseen } from "./framing.js";
import { describe, models, named, ring, tied, trace } from "./marks.js";

const MANY = 1200; // points of a kind beyond which a canvas draws them
const PAIRED = 60; // candidates up to which a thread ties the two scores of one, and dots are large

// Places of `table` by what they are: the front, anchors beside it, the rest; only what `kept` keeps (a Uint8Array, or
// null).
export function parts(table, kept) {
  const found = { front: [], anchors: [], rest: [], faded: [] };
  for (let i = 0; i < table.numbers.length; i++) {
    if (table.rank[i] < 0) continue; // it failed, or is another's copy
    if (kept && !kept[i]) found.faded.push(i);
    else if (table.front[i]) found.front.push(i);
    else if (!table.anchor[i]) found.rest.push(i);
    if (table.anchor[i] && (!kept || kept[i])) found.anchors.push(i);
  }
  return found;
}

// how: {x, y, z | null, heldout, bars, zoom: true, false, or null as `framing` has it, kept | null, chosen | null}:
// places of objectives, and a candidate's number; choose(number) on a click; brushed: only `kept` is another
export async function drawFront(node, objectives, table, references, how) {
  const axes = how.z === null ? [how.x, how.y] : [how.x, how.y, how.z],
    solid = axes.length === 3;
  const found = parts(table, how.kept),
    accent = colour("--accent"),
    amber = colour("--amber"),
    model = colour("--model"),
    soft = colour("--soft");
  const columns = (rows, heldout) => axes.map((k) => rows.map((i) => (heldout ? table.heldout : table.values)[k][i]));
  const errors = (rows, heldout, tint) =>
    axes.map((k) => ({
      type: "data",
      array: rows.map((i) => (heldout ? table.heldout_stderr : table.stderr)[k][i]),
      visible: how.bars,
      thickness: 1,
      width: 0,
      color: tint,
    }));
  const coordinate = (k, a) => `${plain(cut(objectives[k].name, 50))} %{${"xyz"[a]}:.3f}`;
  const coordinates = axes.map(coordinate).join("<br>");
  const made = (name, rows, marker, { heldout = false, bars = false, full = true, ...extra } = {}) =>
    trace(
      name,
      columns(rows, heldout),
      marker,
      {
        customdata: rows.map((i) => table.numbers[i]),
        hoverinfo: "text",
        ...(full
          ? {
              hovertext: rows.map((i) =>
                describe(
                  objectives,
                  labelOf(table, i),
                  row(heldout ? table.heldout : table.values, i),
                  row(heldout ? table.heldout_stderr : table.stderr, i),
                  heldout ? "held-out items" : "calibration items",
                  table.stages[table.stage[i]],
                ),
              ),
            }
          : {
              hovertemplate: `candidate %{customdata}<br>${coordinates}<extra></extra>`,
            }),
        ...(bars
          ? Object.fromEntries(errors(rows, heldout, marker.color).map((e, a) => [`error_${"xyz"[a]}`, e]))
          : {}),
        ...extra,
      },
      solid,
    );
  const words = said(objectives, found, axes),
    seen = how.heldout ? found.front.filter((i) => table.heldout[axes[0]][i] !== null) : [];
  const { ends, zoomed, inside } = framing(table, references, axes, how.bars, how.zoom),
    near = references.filter((r) => inside(r.values));
  // their names are not cut off at the axes: nothing of them is drawn beyond
  found.anchors = found.anchors.filter((i) => inside(row(table.values, i)));
  const held = how.heldout
    ? found.anchors.filter(
        (i) => !table.front[i] && table.heldout[axes[0]][i] !== null && inside(row(table.heldout, i)),
      )
    : []; // the front's are among its own
  const unmerged = how.heldout ? near.filter((r) => r.heldout && inside(r.heldout)) : [],
    labels = solid ? null : placed(node, table, near, found.anchors, unmerged, held, axes, ends);
  const many = !solid && table.numbers.length > MANY,
    wide = many && table.front.reduce((n, f) => n + (f ? 1 : 0), 0) > MANY,
    dot = solid ? 5 : found.front.length > PAIRED ? 7 : 10,
    flat = [];
  const layer = (rows, tint, radius, alpha, heldout = false) => {
    const [x, y] = columns(rows, heldout);
    return { x, y, numbers: rows.map((i) => table.numbers[i]), tint, radius, alpha, open: heldout };
  };
  if (many) flat.push(layer(found.faded.splice(0), soft, 2, 0.06));
  if (many) flat.push(layer(found.rest, soft, 2.6, Math.max(0.12, Math.min(0.4, 1600 / (found.rest.length || 1)))));
  if (wide) flat.push(layer(seen.splice(0), accent, 4, 0.6, true));
  if (wide) flat.push(layer(found.front.splice(0), accent, 4, 0.9));
  const rest = many ? [] : found.rest;
  // of the figure nothing changes
  if (how.brushed && wide && node.classList.contains("js-plotly-plot")) return cloud(node, flat, how.choose);
  if (!globalThis.Plotly && !solid) {
    // the points alone, while the drawing library is still on its way
    const dots = [
      layer(rest, soft, 2.6, 0.3),
      ...flat,
      layer(seen, accent, 4, 0.9, true),
      layer(found.front, accent, 5, 1),
      layer(found.anchors, amber, 4.5, 1),
    ];
    cloud(node, dots, how.choose, ends);
  }
  const traces = [
    made(
      "not in the selection",
      found.faded,
      { color: soft, size: solid ? 2 : 4, opacity: 0.1 },
      { full: false, hoverinfo: "skip", hovertemplate: "" },
    ),
    made("dominated", rest, { color: soft, size: solid ? 3 : 6, opacity: 0.34 }, { full: false }),
    ...(seen.length <= PAIRED ? tied(table, seen, axes, solid, accent) : []),
    ...tied(table, held, axes, solid, amber),
    made("front", found.front, { color: accent, size: dot }, { bars: true, full: !solid }),
    ...(seen.length
      ? [
          made(
            "front, held-out",
            seen,
            {
              color: accent,
              size: dot,
              opacity: found.front.length > PAIRED ? 0.6 : 1,
              symbol: "circle-open",
              line: { width: 2, color: accent },
            },
            { heldout: true, bars: true, full: !solid },
          ),
        ]
      : []),
    ...(held.length
      ? [
          made(
            "anchors, held-out",
            held,
            { color: amber, size: solid ? 5 : 9, symbol: "diamond-open", line: { width: 2, color: amber } },
            {
              heldout: true,
              ...named(
                labels,
                held.map((i) => unseen(table.numbers[i])),
              ),
            },
          ),
        ]
      : []),
    made(
      "anchors",
      found.anchors,
      { color: amber, size: solid ? 5 : 9, symbol: "diamond" },
      named(
        labels,
        found.anchors.map((i) => table.numbers[i]),
      ),
    ),
    ...models(objectives, near, unmerged, axes, labels, solid, model),
    ...ring(table, how.chosen, axes, solid),
  ];
  if (!(await draw(node, traces, framed(objectives, axes, solid, ends, zoomed), words))) return false;
  cloud(node, flat, how.choose);
  if (!node.dataset.heard) {
    node.dataset.heard = "yes";
    node.on("plotly_afterplot", () => node.cloud.soon());
    node.on("plotly_click", (event) => {
      const n = event.points[0].customdata;
      if (how.choose && typeof n === "number") how.choose(n);
    });
  }
  return true;
}

// The tick of `zoom`: {node, update(table, references, how)}; it says what is not seen.
export function zoomTick(how, changed) {
  const node = tick("zoom to front", false, (on) => {
      how.zoom = on;
      changed();
    }),
    [box, text] = node.children;
  return {
    node,
    update(table, references) {
      const axes = how.z === null ? [how.x, how.y] : [how.x, how.y, how.z],
        { zoomed, outside } = framing(table, references, axes, how.bars, how.zoom);
      box.checked = zoomed;
      text.textContent =
        zoomed && outside ? `zoom to front (${outside} of the anchors and models are outside)` : "zoom to front";
    },
  };
}

function framed(objectives, axes, solid, ends, zoomed) {
  const title = (k) => ({
    text: `${plain(cut(objectives[k].name, 44))} (${better(objectives[k].goal)})`,
    standoff: 10,
  });
  const [across, up] = ends; // a zoom stays when what is drawn changes
  if (!solid)
    return {
      xaxis: { title: title(axes[0]), range: across },
      yaxis: { title: title(axes[1]), range: up },
      dragmode: "zoom",
      uirevision: `${axes.join()} ${zoomed}`,
    };
  const axis = (k, a) => ({
    title: { text: plain(cut(objectives[k].name, 30)) },
    ...(zoomed ? { range: ends[a] } : {}),
    gridcolor: colour("--line"),
    zerolinecolor: colour("--line"),
    backgroundcolor: "rgba(0,0,0,0)",
  });
  return {
    margin: { l: 0, r: 0, t: 0, b: 0 },
    scene: {
      xaxis: axis(axes[0], 0),
      yaxis: axis(axes[1], 1),
      zaxis: axis(axes[2], 2),
      camera: { eye: { x: 1.5, y: 1.5, z: 0.9 } },
    },
    uirevision: `scene ${zoomed}`,
  };
}

const said = (objectives, found, axes) =>
  `Front: ${axes.map((k) => objectives[k].name).join(" against ")}; ` +
  `${found.front.length} candidates on the front, ${found.rest.length} dominated, ` +
  `${found.anchors.length} anchors. The table below has the numbers.`;

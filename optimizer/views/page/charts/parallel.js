// Which values go together? A vertical axis a coordinate, a line a candidate; a drag along an axis keeps what passes.
// Drawn on a canvas, some lines a frame: ten thousand candidates never hold the page up, graphics card or not.
import { el, svg } from "../dom.js";
import { cut, number } from "../format.js";
import { colour } from "../plot.js";

const TOP = 92,
  FOOT = 26,
  LEFT = 34,
  RIGHT = 96,
  NARROW = 66,
  REACH = 16; // pixels
const FIRST = 300,
  LEAST = 40,
  SLOW = 34,
  FAST = 20; // lines a frame, and milliseconds between two that change how many

// Where the values of an axis lie: 0 at its foot, 1 at its top; what has no such value is below, on a tick of its own.
function scaled({ values, labels }) {
  let low = Infinity,
    high = -Infinity,
    missing = false;
  for (const v of values) {
    if (v === null) missing = true;
    else {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  if (labels) [low, high] = [-0.2, labels.length - 0.8];
  const span = high - low || 1,
    foot = missing ? 0.12 : 0;
  const at = (v) => (v === null ? 0 : foot + ((1 - foot) * (v - low)) / span),
    back = (share) => low + span * Math.min(1, Math.max(0, (share - foot) / (1 - foot)));
  const ticks = labels
    ? labels.map((text, i) => [at(i), cut(text, 16)])
    : high > low
      ? [
          [at(low), number(low)],
          [at(high), number(high)],
        ]
      : [[at(low), number(low)]];
  return { at, back, low, high, ticks: missing ? [[0, "–"], ...ticks] : ticks };
}

const alpha = (count) => Math.max(0.12, Math.min(0.7, 150 / (count || 1)));

// Draws layers of lines on a canvas, some a frame: as many as this machine draws in time. Given others it starts anew.
function painter(canvas, size, path, done = () => {}) {
  let turn = 0,
    batch = FIRST;
  return (layers) => {
    cancelAnimationFrame(turn);
    if (layers === null) return;
    const ratio = Math.min(2, devicePixelRatio || 1),
      pen = canvas.getContext("2d"),
      [width, height] = size();
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)]; // clears it
    canvas.style.setProperty("width", `${width}px`);
    canvas.style.setProperty("height", `${height}px`);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    let layer = 0,
      i = 0,
      last = 0;
    const some = (now) => {
      if (last) batch = now - last > SLOW ? Math.max(LEAST, batch * 0.6) : now - last < FAST ? batch * 1.3 : batch;
      last = now;
      for (let left = batch; layer < layers.length; layer++, i = 0) {
        const { rows, tint, width: thick } = layers[layer];
        [pen.strokeStyle, pen.globalAlpha, pen.lineWidth] = [tint, layers[layer].alpha, thick];
        for (; i < rows.length; i++) {
          if (left-- <= 0) {
            turn = requestAnimationFrame(some);
            return;
          }
          pen.beginPath();
          path(pen, rows[i]);
          pen.stroke();
        }
      }
      done();
    };
    some(0);
  };
}

// on.brushed(name, [low, high] | null) at every move of a drag, on.done() at its end
export function parallelChart(node, on) {
  const [under, middle] = [0, 1].map(() => el("canvas", { "aria-hidden": "true" })),
    over = svg("svg", { role: "img" }),
    inner = el("div", { class: "inner" }, under, middle, over);
  node.replaceChildren(inner);
  let axes = [],
    scales = [],
    front = [],
    ranges = new Map(),
    kept = null,
    width = 0,
    height = 0,
    brushes = [];
  const x = (k) => LEFT + (axes.length > 1 ? (k * (width - LEFT - RIGHT)) / (axes.length - 1) : 0),
    y = (share) => TOP + (1 - share) * (height - TOP - FOOT);
  const path = (pen, i) => {
    for (let k = 0; k < axes.length; k++) pen.lineTo(x(k), y(scales[k].at(axes[k].values[i])));
  };
  const below = painter(under, () => [width, height], path),
    above = painter(
      middle,
      () => [width, height],
      path,
      () => {
        node.dataset.drawn = String(front.length);
      },
    );
  const share = (event) =>
    Math.min(1, Math.max(0, 1 - (event.clientY - over.getBoundingClientRect().top - TOP) / (height - TOP - FOOT)));

  function draw(given) {
    ({ axes, front, ranges, kept } = given);
    scales = axes.map(scaled);
    width = Math.max(node.clientWidth, LEFT + RIGHT + NARROW * (axes.length - 1));
    height = node.clientHeight;
    inner.style.setProperty("width", `${width}px`);
    frame();
    const rest = front.flatMap((f, i) => (f ? [] : [i]));
    below([{ rows: rest, tint: colour("--thread"), alpha: alpha(rest.length), width: 1 }]);
    lines();
  }

  // Names, ticks and brushes.
  function frame() {
    for (const [key, value] of Object.entries({
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "aria-label":
        `Parallel coordinates of ${axes.map((a) => a.name).join(", ")}. The fields below set the same ` + "ranges.",
    }))
      over.setAttribute(key, value);
    brushes = axes.map(() => svg("rect", { class: "brush", width: 14, rx: 3 }));
    over.replaceChildren(
      ...axes.map((a, k) => {
        const name = svg(
          "text",
          { class: "axis-title", transform: `translate(${x(k) - 4} ${TOP - 24}) rotate(-24)` },
          cut(a.short ?? a.name, k < axes.length - 1 ? 26 : 16),
        );
        name.append(svg("title", {}, a.name));
        const hit = svg("rect", {
          class: "hit",
          x: x(k) - REACH,
          y: TOP - 8,
          width: 2 * REACH,
          height: height - TOP - FOOT + 16,
        });
        hit.addEventListener("pointerdown", (event) => drag(k, event));
        const ends = scales[k].ticks.map(([at, text], i) =>
          svg(
            "text",
            {
              class: "tick-text",
              x: x(k),
              y:
                axes[k].labels || i !== scales[k].ticks.length - 1
                  ? at === 0 || !axes[k].labels
                    ? y(at) + 16
                    : y(at) + 4
                  : y(at) - 7,
            },
            text,
          ),
        );
        return svg(
          "g",
          {},
          svg("line", { class: "axis", x1: x(k), x2: x(k), y1: y(0), y2: y(1) }),
          name,
          ...ends,
          brushes[k],
          hit,
        );
      }),
    );
    axes.forEach((_, k) => place(k));
  }

  function place(k) {
    const range = ranges.get(axes[k].name),
      rect = brushes[k];
    rect.setAttribute("visibility", range ? "visible" : "hidden");
    if (!range) return;
    const [low, high] = range.map((v) => Math.min(1, Math.max(0, scales[k].at(v))));
    for (const [key, value] of Object.entries({ x: x(k) - 7, y: y(high), height: Math.max(2, y(low) - y(high)) }))
      rect.setAttribute(key, value);
  }

  // A drag along an axis: inside its brush it moves that, elsewhere it makes another; a click clears.
  function drag(k, start) {
    start.preventDefault();
    const { name } = axes[k],
      from = share(start),
      old = ranges.get(name),
      ends = old && old.map(scales[k].at),
      moves = ends && from > ends[0] && from < ends[1];
    let moved = false;
    start.target.setPointerCapture(start.pointerId);
    const move = (event) => {
      const to = share(event);
      if (!moved && Math.abs(to - from) * height < 3) return;
      moved = true;
      const [low, high] = moves ? ends.map((end) => end + to - from) : [Math.min(from, to), Math.max(from, to)];
      on.brushed(name, [scales[k].back(low), scales[k].back(high)]);
      place(k);
    };
    const up = () => {
      start.target.removeEventListener("pointermove", move);
      if (!moved) {
        on.brushed(name, null);
        place(k);
      }
      on.done();
    };
    start.target.addEventListener("pointermove", move);
    start.target.addEventListener("pointerup", up, { once: true });
    start.target.addEventListener("pointercancel", up, { once: true });
  }

  // Where there are brushes: what they keep, over all else dimmed; else the front over the rest.
  function lines(now = kept) {
    kept = now;
    under.classList.toggle("dim", kept !== null);
    const rows = front.flatMap((_, i) => (!kept || kept[i] ? [i] : [])),
      plenty = alpha(rows.length);
    above([
      ...(kept ? [{ rows: rows.filter((i) => !front[i]), tint: colour("--kept"), alpha: plenty, width: 1 }] : []),
      { rows: rows.filter((i) => front[i]), tint: colour("--accent"), alpha: Math.max(0.25, plenty), width: 1.3 },
    ]);
  }

  return {
    draw,
    lines,
    dispose() {
      below(null);
      above(null);
    },
  };
}

// 1 for each place that every range keeps; null where there is no range.
export function keptBy(axes, ranges) {
  const active = axes.filter((a) => ranges.has(a.name));
  if (!active.length) return null;
  const kept = new Uint8Array(active[0].values.length).fill(1);
  for (const { name, values } of active) {
    const slack = 1e-9 * Math.max(...ranges.get(name).map(Math.abs)),
      low = ranges.get(name)[0] - slack,
      high = ranges.get(name)[1] + slack;
    for (let i = 0; i < kept.length; i++) if (values[i] === null || values[i] < low || values[i] > high) kept[i] = 0;
  }
  return kept;
}

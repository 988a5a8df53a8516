// What of a front is in view, and where are its names? From where to where the axes go, and labels that touch nothing.
import { cut } from "../format.js";
import { plain } from "../plot.js";

const STRETCH = 2.5; // times as wide as the front an axis may be before the front is shown alone
const NEAR = 48; // pixels from its other score within which a held-out one needs no name
const CELL = 8; // pixels of a cell in which dots are counted
const FEW = 4; // dots that a lesser name may lie on

export const labelOf = (table, i) => table.labels[table.numbers[i]] ?? String(table.numbers[i]);

export const row = (columns, i) => columns.map((column) => column[i]);

// the key of a held-out score's label, among those of `placed`
export const unseen = (key) => `${key} held-out`;

// From where to where each of `axes` goes: all that is drawn, or the front and a little more. zoom: null leaves it to
// what is drawn: anchors and models as they are may be so far off that the front is a dot. outside: so many of them are
// not seen.
export function framing(table, references, axes, bars, zoom = null) {
  const all = axes.map((k) => extent(k, table, references, bars, false)),
    near = axes.map((k) => extent(k, table, references, bars, true)),
    wide = ([low, high]) => high - low;
  const front = table.front.some(Boolean),
    stretched = front && axes.some((_, a) => wide(all[a]) > STRETCH * wide(near[a])),
    zoomed = front && (zoom ?? stretched),
    ends = zoomed ? near : all;
  const inside = (values) =>
    axes.every((k, a) => values[k] === null || (values[k] >= ends[a][0] && values[k] <= ends[a][1]));
  const anchors = table.numbers.reduce(
    (n, _, i) => n + (table.anchor[i] && table.rank[i] >= 0 && !inside(row(table.values, i)) ? 1 : 0),
    0,
  );
  return { ends, zoomed, inside, outside: anchors + references.reduce((n, r) => n + (inside(r.values) ? 0 : 1), 0) };
}

function extent(k, table, references, bars, front) {
  let low = Infinity,
    high = -Infinity;
  const take = (v, error) => {
    if (v === null || v === undefined) return;
    low = Math.min(low, v - ((bars && error) || 0));
    high = Math.max(high, v + ((bars && error) || 0));
  };
  table.values[k].forEach((v, i) => {
    if (!front || table.front[i]) take(v, table.front[i] && table.stderr[k][i]);
  });
  table.heldout[k].forEach((v, i) => {
    if (!front || table.front[i]) take(v, table.front[i] && table.heldout_stderr[k][i]);
  });
  if (!front)
    for (const r of references) {
      take(r.values[k]);
      if (r.heldout) take(r.heldout[k]);
    }
  const room = (front ? 0.12 : 0.06) * (high - low) || 0.05 * Math.abs(high) || 0.1;
  return [low - room, high + room];
}

// Where each label goes so that it touches no other and no named marker, and as few other dots as can be; one that has
// no place, or a lesser one among many dots, is left to the hover, and so is a held-out score's beside its other one.
// unmerged, held: those of `references` and `anchors` whose held-out scores are drawn, which are named last.
export function placed(node, table, references, anchors, unmerged, held, axes, ends) {
  const [x, y] = axes,
    width = Math.max(200, node.clientWidth - 78),
    height = Math.max(200, node.clientHeight - 64),
    gap = 8;
  const scale =
      ([low, high], size) =>
      (value) =>
        ((value - low) / (high - low)) * size,
    across = scale(ends[0], width),
    up = scale(ends[1], height);
  const model = (r) => ({ key: r.label, label: cut(r.label, 32), value: r.values }),
    anchor = (i) => ({ key: table.numbers[i], label: cut(labelOf(table, i), 32), value: row(table.values, i) });
  const centre = (r) => [across(r.value[x]), height - up(r.value[y])],
    apart = (one, other) => Math.hypot(one[0] - other[0], one[1] - other[1]);
  const again = (r, value) => ({
    key: unseen(r.key),
    label: apart(centre(r), centre({ value })) < NEAR ? "" : `${r.label}, held-out`,
    value,
    less: true,
  });
  // steps of a sweep come last
  const own = anchors.map(anchor).map((r) => ({ ...r, less: r.label.startsWith("global") }));
  const rows = [
    ...references.map(model),
    ...own.filter((r) => !r.less),
    ...own.filter((r) => r.less),
    ...unmerged.map((r) => again(model(r), r.heldout)),
    ...held.map((i) => again(anchor(i), row(table.heldout, i))),
  ];
  const boxes = rows.map((r) => {
    const [a, b] = centre(r);
    return [a - 5, b - 5, a + 5, b + 5];
  });
  table.numbers.forEach((_, i) => {
    // other markers of the front, where there is room to go round them
    if (!table.front[i] || table.rank[i] < 0 || boxes.length > 150) return;
    for (const value of [row(table.values, i), row(table.heldout, i)]) {
      const [a, b] = centre({ value });
      if (value[x] !== null) boxes.push([a - 4, b - 4, a + 4, b + 4]);
    }
  });
  const free = (box) =>
    box[0] >= 0 &&
    box[2] <= width &&
    box[1] >= 0 &&
    box[3] <= height &&
    boxes.every((o) => box[2] <= o[0] || box[0] >= o[2] || box[3] <= o[1] || box[1] >= o[3]);
  const dots = new Map(),
    cell = (a, b) => Math.floor(a / CELL) + 10_000 * Math.floor(b / CELL),
    found = new Map();
  table.values[x].forEach((v, i) => {
    if (table.rank[i] >= 0) {
      const at = cell(across(v), height - up(table.values[y][i]));
      dots.set(at, (dots.get(at) || 0) + 1);
    }
  });
  const under = ([left, top, right, bottom]) => {
    let count = 0;
    for (let a = left; a < right + CELL; a += CELL)
      for (let b = top; b < bottom + CELL; b += CELL) count += dots.get(cell(a, b)) || 0;
    return count;
  };
  for (const r of rows) {
    if (!r.label) {
      found.set(r.key, ["", "top center"]);
      continue;
    }
    const [a, b] = centre(r),
      w = 6.6 * r.label.length,
      h = 15;
    const places = {
      "top center": [a - w / 2, b - gap - h],
      "bottom center": [a - w / 2, b + gap],
      "middle right": [a + gap, b - h / 2],
      "middle left": [a - gap - w, b - h / 2],
      "top right": [a + 3, b - gap - h],
      "top left": [a - 3 - w, b - gap - h],
      "bottom right": [a + 3, b + gap],
      "bottom left": [a - 3 - w, b + gap],
    };
    const box = (p) => [...places[p], places[p][0] + w, places[p][1] + h],
      best = Object.keys(places)
        .filter((p) => free(box(p)))
        .map((p) => [under(box(p)), p])
        .sort((one, other) => one[0] - other[0])[0];
    const place = best && (!r.less || best[0] <= FEW) ? best[1] : null;
    if (place) boxes.push(box(place));
    found.set(r.key, [place ? plain(r.label) : "", place || "top center"]);
  }
  return found;
}

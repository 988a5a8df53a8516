// How are ten thousand points drawn in a few milliseconds? On a canvas behind the figure, where its axes say.
import { el } from "../dom.js";

const NEAR = 9; // pixels within which a click means a point

// layers: [{x, y, numbers, tint, radius, alpha, open}], the first at the bottom. Drawn again whenever the figure is.
// rough: [from, to] across and up, by which points are drawn while there is no figure yet.
export function cloud(node, layers, choose, rough = null) {
  const state = node.cloud || (node.cloud = started(node));
  state.layers = layers;
  state.rough = rough;
  state.choose = choose;
  if (rough) state.draw();
  else state.soon();
}

function started(node) {
  const canvas = el("canvas", { class: "cloud", "aria-hidden": "true" }),
    state = { layers: [], choose: null, rough: null, soon, draw };
  let down = null,
    waiting = 0;

  // Once a frame, however often it is asked for.
  function soon() {
    if (!waiting)
      waiting = requestAnimationFrame(() => {
        waiting = 0;
        draw();
      });
  }

  function frame() {
    const area = node.querySelector(".nsewdrag"),
      { xaxis, yaxis } = node.layout || {},
      home = node.getBoundingClientRect();
    if (!(area && xaxis && xaxis.range) && !state.rough) return null;
    const box = area
      ? area.getBoundingClientRect()
      : { left: home.left + 56, top: home.top + 12, width: home.width - 72, height: home.height - 58 };
    const [[left, right], [low, high]] = area ? [xaxis.range, yaxis.range] : state.rough;
    return {
      left: box.left - home.left,
      top: box.top - home.top,
      width: box.width,
      height: box.height,
      x: (v) => ((v - left) / (right - left)) * box.width,
      y: (v) => (1 - (v - low) / (high - low)) * box.height,
    };
  }

  function draw() {
    const at = state.layers.length ? frame() : null;
    if (!at) return canvas.remove();
    if (canvas.parentElement !== node) node.prepend(canvas);
    const ratio = Math.min(2, devicePixelRatio || 1),
      pen = canvas.getContext("2d");
    for (const side of ["left", "top", "width", "height"]) canvas.style.setProperty(side, `${at[side]}px`);
    [canvas.width, canvas.height] = [Math.round(at.width * ratio), Math.round(at.height * ratio)];
    if (!canvas.width || !canvas.height) return null;
    const image = pen.createImageData(canvas.width, canvas.height);
    for (const layer of state.layers) dots(image, layer, ratio, at);
    pen.putImageData(image, 0, 0);
    canvas.dataset.points = String(state.layers.reduce((n, l) => n + l.x.length, 0));
    return null;
  }

  // A click, and no drag, means the nearest point.
  function up(event) {
    if (!down || !state.choose || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 3) return;
    const at = state.layers.length ? frame() : null,
      home = node.getBoundingClientRect();
    if (!at) return;
    const [px, py] = [event.clientX - home.left - at.left, event.clientY - home.top - at.top];
    let best = NEAR,
      number = null;
    for (const layer of state.layers) {
      layer.x.forEach((v, i) => {
        if (v === null) return;
        const far = Math.hypot(at.x(v) - px, at.y(layer.y[i]) - py);
        if (far <= best) [best, number] = [far, layer.numbers[i]];
      });
    }
    if (number !== null) state.choose(number);
  }

  node.addEventListener(
    "pointerdown",
    (event) => {
      down = [event.clientX, event.clientY];
    },
    true,
  );
  node.addEventListener("pointerup", up, true);
  return state;
}

// Shares of each pixel that a dot covers, (side, side).
function stamp({ radius, open }, ratio) {
  const r = radius * ratio,
    side = 2 * Math.ceil(r + 1.5 * ratio) + 1,
    middle = (side - 1) / 2,
    mask = new Float32Array(side * side);
  for (let y = 0, k = 0; y < side; y++) {
    for (let x = 0; x < side; x++, k++) {
      const far = Math.hypot(x - middle, y - middle),
        covered = open ? ratio + 0.5 - Math.abs(far - r) : r + 0.5 - far;
      mask[k] = Math.min(1, Math.max(0, covered));
    }
  }
  return { mask, side, middle };
}

// A layer's dots over what is there: pixel by pixel, since a canvas takes ten times as long for so many little
// pictures.
function dots({ data, width, height }, layer, ratio, at) {
  const { mask, side, middle } = stamp(layer, ratio),
    [red, green, blue] = layer.tint.match(/[\d.]+/g).map(Number);
  for (let i = 0; i < layer.x.length; i++) {
    if (layer.x[i] === null || layer.y[i] === null) continue;
    const left = Math.round(at.x(layer.x[i]) * ratio - middle),
      top = Math.round(at.y(layer.y[i]) * ratio - middle);
    if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
    for (let y = 0, k = 0; y < side; y++) {
      for (let x = 0, p = 4 * ((top + y) * width + left); x < side; x++, k++, p += 4) {
        const over = mask[k] * layer.alpha;
        if (over === 0) continue;
        const under = (data[p + 3] / 255) * (1 - over),
          all = over + under;
        data[p] = (red * over + data[p] * under) / all;
        data[p + 1] = (green * over + data[p + 1] * under) / all;
        data[p + 2] = (blue * over + data[p + 2] * under) / all;
        data[p + 3] = 255 * all;
      }
    }
  }
}

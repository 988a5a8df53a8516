// How are ten thousand points drawn in a few milliseconds? On a canvas behind the figure, where the figure's axes say.
import { el } from "../dom.js";

const NEAR = 9; // pixels within which a click means a point

// layers: [{x, y, numbers, tint, radius, alpha, open}], the first at the bottom. Drawn again whenever the figure is.
export function cloud(node, layers, choose) {
  const state = node.cloud || (node.cloud = started(node));
  state.layers = layers;
  state.choose = choose;
  state.draw();
}

function started(node) {
  const canvas = el("canvas", { class: "cloud", "aria-hidden": "true" }), state = { layers: [], choose: null, draw };
  let down = null;

  function frame() {
    const area = node.querySelector(".nsewdrag"), { xaxis, yaxis } = node.layout || {};
    if (!area || !xaxis || !xaxis.range) return null;
    const box = area.getBoundingClientRect(), home = node.getBoundingClientRect();
    const [left, right] = xaxis.range, [low, high] = yaxis.range;
    return { left: box.left - home.left, top: box.top - home.top, width: box.width, height: box.height,
      x: (v) => (v - left) / (right - left) * box.width, y: (v) => (1 - (v - low) / (high - low)) * box.height };
  }

  function draw() {
    const at = state.layers.length ? frame() : null;
    if (!at) return canvas.remove();
    if (canvas.parentElement !== node) node.prepend(canvas);
    const ratio = Math.min(2, devicePixelRatio || 1), pen = canvas.getContext("2d");
    for (const side of ["left", "top", "width", "height"]) canvas.style.setProperty(side, `${at[side]}px`);
    [canvas.width, canvas.height] = [Math.round(at.width * ratio), Math.round(at.height * ratio)];
    for (const layer of state.layers) {
      const dot = sprite(layer, ratio), r = dot.width / 2;
      pen.globalAlpha = layer.alpha;
      for (let i = 0; i < layer.x.length; i++) if (layer.x[i] !== null) pen.drawImage(dot, Math.round(at.x(layer.x[i]) * ratio - r), Math.round(at.y(layer.y[i]) * ratio - r));
    }
    canvas.dataset.points = String(state.layers.reduce((n, l) => n + l.x.length, 0));
    return null;
  }

  // A click, and no drag, means the nearest point.
  function up(event) {
    if (!down || !state.choose || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 3) return;
    const at = state.layers.length ? frame() : null, home = node.getBoundingClientRect();
    if (!at) return;
    const [px, py] = [event.clientX - home.left - at.left, event.clientY - home.top - at.top];
    let best = NEAR, number = null;
    for (const layer of state.layers) {
      layer.x.forEach((v, i) => {
        if (v === null) return;
        const far = Math.hypot(at.x(v) - px, at.y(layer.y[i]) - py);
        if (far <= best) [best, number] = [far, layer.numbers[i]];
      });
    }
    if (number !== null) state.choose(number);
  }

  node.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; }, true);
  node.addEventListener("pointerup", up, true);
  return state;
}

// One dot, drawn once and copied.
function sprite({ tint, radius, open }, ratio) {
  const side = Math.ceil(2 * (radius + 1.5) * ratio), made = el("canvas"), pen = made.getContext("2d");
  [made.width, made.height] = [side, side];
  pen.beginPath();
  pen.arc(side / 2, side / 2, radius * ratio, 0, 2 * Math.PI);
  [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [tint, tint, 2 * ratio];
  open ? pen.stroke() : pen.fill();
  return made;
}

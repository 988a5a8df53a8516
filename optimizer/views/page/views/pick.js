// What is each objective worth? A slider each, and the front's best answer, which moves with them.
import { labelOf } from "../charts/framing.js";
import { drawFront, zoomTick } from "../charts/front.js";
import { boxOf, preferred } from "../choosing.js";
import { breakable, card, el, empty, fill, labelled, plainTable, select, svg, tick } from "../dom.js";
import { better, cut, number, plusMinus, unshared, whole } from "../format.js";
import { anchorNote, term } from "../glossary.js";
import { erase } from "../plot.js";
import { candidateAddress, runAddress } from "../address.js";

const NEXT = 4; // runners-up that are named

// data: {run, table, serves: whether there is a server}
export function pickView(data) {
  const { run, table } = data,
    m = run.objectives.length,
    box = boxOf(run.objectives, table),
    only = frontOnly(table);
  const weights = run.objectives.map(() => 50),
    bounds = run.objectives.map(() => null),
    how = { x: 0, y: Math.min(1, m - 1), z: null, heldout: true, bars: true, zoom: null, kept: null },
    zoom = zoomTick(how, () => drawn());
  const figure = el("div", { class: "figure" }),
    answer = el("div", { class: "about", "aria-live": "polite", "aria-label": "The answer" }),
    atOnce = el("div", { class: "at-once" }), // where the answer lies below its sliders: in view while they move
    short = unshared(run.objectives.map((o) => o.name)),
    strips = run.objectives.map((_, k) => strip(table, k));
  const names = run.objectives.map((o, i) => [i, cut(o.name, 60)]);
  let waiting = 0,
    place = -1;
  const head = el(
    "div",
    { class: "head" },
    el(
      "h1",
      {},
      el("a", { href: runAddress(run.name) }, el("span", { class: "name" }, run.name)),
      " ",
      el("span", { class: "soft" }, "/"),
      " pick",
    ),
  );
  const node = el(
    "div",
    {},
    head,
    only.numbers.length
      ? [
          el(
            "div",
            { class: "pair wide" },
            card(
              "worth",
              "What is each objective worth?",
              [
                "Drag: the answer is the candidate of the ",
                term("front"),
                " with the best weighted mean, each objective in units of the ",
                term("anchors' range"),
                ". The strip shows where the front's candidates lie, and the answer among them.",
              ],
              run.objectives.map(slider),
              atOnce,
            ),
            card("answer-card", "The answer", null, answer),
          ),
          card(
            "where",
            "Where it lies",
            null,
            el(
              "div",
              { class: "controls" },
              labelled(
                "across",
                select(names, how.x, (v) => {
                  how.x = Number(v);
                  how.zoom = null;
                  drawn();
                }),
              ),
              labelled(
                "up",
                select(names, how.y, (v) => {
                  how.y = Number(v);
                  how.zoom = null;
                  drawn();
                }),
              ),
              tick("held-out", how.heldout, (v) => {
                how.heldout = v;
                drawn();
              }),
              tick("error bars", how.bars, (v) => {
                how.bars = v;
                drawn();
              }),
              zoom.node,
            ),
            figure,
          ),
        ]
      : card("worth", "Pick", null, empty("The front is empty: come back when candidates are answered.")),
  );

  function slider(o, k) {
    const out = el("output", {}, "50 %"),
      value = el("span", { class: "figure-number" });
    strips[k].value = value;
    strips[k].share = out;
    return el(
      "div",
      { class: "worth" },
      el(
        "div",
        { class: "line" },
        el("span", { class: "name" }, breakable(o.name)),
        el("small", {}, better(o.goal)),
        value,
      ),
      strips[k].node,
      el(
        "div",
        { class: "line" },
        el("input", {
          type: "range",
          min: 0,
          max: 100,
          value: 50,
          "aria-label": `Weight of ${o.name}`,
          oninput: (event) => {
            weights[k] = Number(event.target.value);
            later();
          },
        }),
        out,
        labelled(
          o.goal === "max" ? "at least" : "at most",
          el("input", {
            type: "number",
            step: "any",
            class: "short",
            "aria-label": `${o.goal === "max" ? "At least" : "At most"} ${o.name}`,
            oninput: (event) => {
              bounds[k] = event.target.value === "" ? null : Number(event.target.value);
              later();
            },
          }),
        ),
      ),
    );
  }

  function later() {
    if (!waiting)
      waiting = requestAnimationFrame(() => {
        waiting = 0;
        update();
      });
  }

  function update(anew = false) {
    const order = preferred(table, box, weights, bounds),
      sum = weights.reduce((a, b) => a + b, 0);
    strips.forEach((s, k) => {
      s.share.textContent = `${Math.round(100 * (sum ? weights[k] / sum : 1 / m))} %`;
      s.move(order.length ? order[0] : -1);
      s.value.textContent = order.length ? number(table.values[k][order[0]]) : "–";
    });
    if (order.length) answered(order);
    else {
      answer.replaceChildren(empty("No candidate of the front meets these bounds: loosen one."));
      fill(atOnce, "No candidate meets these bounds.");
    }
    const before = place;
    place = order.length ? order[0] : -1;
    if (anew || place !== before) drawn();
  }

  function answered(order) {
    const i = order[0],
      address = (j) => candidateAddress(run.name, table.numbers[j]);
    fill(
      atOnce,
      el("a", { href: address(i) }, `candidate ${cut(labelOf(table, i), 30)}`),
      short.map((name, k) => el("span", { class: "scores" }, `${cut(name, 24)} ${number(table.values[k][i])}`)),
    );
    fill(
      answer,
      el("h3", {}, el("a", { href: address(i) }, `candidate ${cut(labelOf(table, i), 50)}`)),
      anchorNote(labelOf(table, i)),
      plainTable(
        ["objective", "calibration", "held-out"],
        run.objectives.map((o, k) => [
          [breakable(cut(o.name, 40))],
          [number(table.values[k][i]), plusMinus(table.stderr[k][i])],
          [number(table.heldout[k][i]), plusMinus(table.heldout_stderr[k][i])],
        ]),
        "Scores of the answer",
      ),
      el(
        "p",
        { class: "soft" },
        order.length > 1
          ? [
              "Next: ",
              order
                .slice(1, 1 + NEXT)
                .flatMap((j, n) => [n ? ", " : "", el("a", { href: address(j) }, cut(labelOf(table, j), 30))]),
              ` (${whole(order.length)} of the front to choose from)`,
            ]
          : "There is no other to choose from.",
      ),
      el("a", { class: "button primary", href: address(i) }, data.serves ? "Open, export" : "Open"),
    );
  }

  function drawn() {
    if (!only.numbers.length) return;
    zoom.update(only, run.references || []);
    drawFront(figure, run.objectives, only, run.references || [], {
      ...how,
      chosen: place < 0 ? null : table.numbers[place],
    });
  }

  return {
    node,
    draw() {
      if (only.numbers.length) update(true);
    },
    dispose() {
      cancelAnimationFrame(waiting);
      erase(figure);
    },
  };
}

// The table with the front and the anchors alone.
function frontOnly(t) {
  const rows = t.numbers.flatMap((_, i) => (t.front[i] || t.anchor[i] ? [i] : [])),
    of = (column) => rows.map((i) => column[i]),
    all = (columns) => columns.map(of);
  return {
    ...t,
    numbers: of(t.numbers),
    stage: of(t.stage),
    rank: of(t.rank),
    front: of(t.front),
    anchor: of(t.anchor),
    values: all(t.values),
    stderr: all(t.stderr),
    heldout: all(t.heldout),
    heldout_stderr: all(t.heldout_stderr),
  };
}

// Where the front's candidates lie in one objective, the worst at the left; the answer's mark moves.
function strip(table, k) {
  const values = table.values[k].filter((_, i) => table.front[i]),
    low = values.reduce((a, b) => Math.min(a, b), Infinity),
    span = values.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1;
  const at = (v) => ((100 * (v - low)) / span).toFixed(2),
    mark = el("i", { hidden: true });
  const ticks = svg("path", { d: [...new Set(values.map(at))].map((x) => `M${x} 4v10`).join("") });
  return {
    node: el(
      "div",
      { class: "strip", "aria-hidden": "true" },
      svg(
        "svg",
        { viewBox: "0 0 100 18", preserveAspectRatio: "none" },
        svg("path", { class: "rail", d: "M0 9H100" }),
        ticks,
      ),
      mark,
    ),
    move(i) {
      mark.hidden = i < 0;
      if (i >= 0) mark.style.setProperty("left", `${at(table.values[k][i])}%`);
    },
  };
}

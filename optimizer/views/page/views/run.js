// How does one run stand? Its front, its progress, which values go together, what matters, and every candidate.
import { drawCurve, stageColours } from "../charts/curve.js";
import { shares } from "../charts/small.js";
import { card, el, empty, fill, fillLog, labelled, plainTable, reselect, select } from "../dom.js";
import { cut, signed, whole } from "../format.js";
import { term } from "../glossary.js";
import { erase } from "../plot.js";
import { candidatesPart } from "./run_candidates.js";
import { frontPart } from "./run_front.js";
import { headPart } from "./run_head.js";
import { parallelPart } from "./run_parallel.js";
import { surePart } from "./run_sure.js";

const STAGES_SHOWN = 8;

// data: {run, table, curve | null, coordinates, importance | null, log: [lines] | null where there is no server}
// on: {metric(name)}, and where there is a server stop(), resume(evaluations), cancel() and download(kind)
export function runView(data, on) {
  const state = { kept: null, chosen: null, run: data.run, table: data.table };
  const head = headPart(data, on);
  const front = frontPart(data, state, (number) => {
    state.chosen = number;
    front.chosen();
    rows.update();
  });
  const rows = candidatesPart(data, state, (number) => {
    state.chosen = number;
    front.chosen();
    rows.update();
  });
  const parallel = parallelPart(data, (kept) => {
    state.kept = kept;
    inTurn(front.brushed, rows.update);
  });
  let turn = 0;
  // Each in a frame of its own, so that none holds up the next drag; given others, what is left of these is not done.
  function inTurn(...works) {
    cancelAnimationFrame(turn);
    turn = requestAnimationFrame(() => {
      const [first, ...rest] = works;
      first();
      if (rest.length) inTurn(...rest);
    });
  }

  const sure = surePart(data);
  const curve = el("div", { class: "figure" }),
    stages = el("div", {}),
    weights = el("div", {}),
    lines = el("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
  const metric = select([], "", (name) => on.metric(name));
  const node = el(
    "div",
    {},
    head.node,
    front.node,
    el(
      "div",
      { class: "pair" },
      card(
        "progress",
        "Progress",
        [
          term("hypervolume", "Hypervolume"),
          ": how much the front dominates, in units of the box between the ",
          term("anchors"),
          "' best and worst. Dotted: ",
          term("epsilon"),
          ", how far the anchors alone fall short of the front.",
        ],
        curve,
        stages,
      ),
      card(
        "importance",
        "What matters",
        ["The ", term("share"), " of a metric's variation that each ", term("coordinate"), " explains."],
        el("div", { class: "controls" }, labelled("of", metric)),
        weights,
      ),
    ),
    parallel.node,
    sure.node,
    rows.node,
    data.log && card("log", "Log", null, lines),
  );

  function side(now) {
    const colours = stageColours(now.curve ? now.curve.stages : []);
    showStages(stages, now.run.stages || [], colours);
    reselect(metric, [["", "the objectives' mean"], ...now.run.objectives.map((o) => [o.name, cut(o.name, 60)])]);
    weigh(now.importance);
    if (!now.log) return;
    const end = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 4;
    fillLog(lines, now.log.length ? now.log : ["Nothing was logged yet."]);
    if (end)
      requestAnimationFrame(() => {
        lines.scrollTop = lines.scrollHeight;
      }); // once it is on the page
  }

  function weigh(found) {
    if (found === null) weights.replaceChildren(el("p", { class: "soft" }, "Working it out …"));
    else if (typeof found === "string") weights.replaceChildren(empty(found));
    else if (!found.length) weights.replaceChildren(empty("There are too few answers to tell; look again later."));
    else weights.replaceChildren(shares(found.slice(0, 12)));
  }

  function drawn(now) {
    if (now.curve === null) fill(curve, el("p", { class: "soft" }, "Working it out …"));
    else if (now.curve.answered.length) {
      if (curve.querySelector("p")) curve.replaceChildren();
      drawCurve(curve, now.curve);
    } else curve.replaceChildren(empty("Nothing is answered yet: the first answers are the anchors'."));
  }

  // What the brushes keep is by place in the table: it is told of this one before front and rows are drawn by it.
  function selected(now) {
    state.kept = parallel.update(now);
  }

  let last = data,
    shown = false; // before it is on the page nothing has a size to draw in
  side(data);
  return {
    node,
    draw() {
      shown = true;
      selected(last);
      front.update(last);
      drawn(last);
      rows.update(last);
    },
    update(now) {
      last = now;
      [state.run, state.table] = [now.run, now.table];
      head.update(now);
      sure.update(now);
      side(now);
      selected(now);
      front.update(now);
      drawn(now);
      rows.update(now);
    },
    importance: weigh,
    curve(now) {
      last = now;
      showStages(stages, now.run.stages || [], stageColours(now.curve.stages));
      if (shown) drawn(now);
    },
    coordinates(now) {
      last = now;
      if (!shown) return;
      const before = state.kept;
      selected(now);
      if (before || state.kept) inTurn(front.brushed, rows.update);
    },
    brushed: parallel.brushed,
    dispose() {
      cancelAnimationFrame(turn);
      front.dispose();
      parallel.dispose();
      erase(curve);
    },
  };
}

// Their table; of a long search folded below a line on the one that gained most, and left as open as it is.
function showStages(node, stages, colours) {
  const table = stageTable(stages, colours),
    old = node.querySelector("details");
  if (stages.length <= STAGES_SHOWN) return node.replaceChildren(table);
  const most = stages.reduce((best, s) => (s.gain > best.gain ? s : best));
  const said = `${whole(stages.length)} stages; ${cut(most.stage, 40)} gained most, ${signed(most.gain)}`;
  if (!old) return node.replaceChildren(el("details", {}, el("summary", {}, said), table));
  old.querySelector("summary").textContent = said;
  old.lastElementChild.replaceWith(table);
}

// What each stage gained, in the curve's colours.
function stageTable(stages, colours) {
  return plainTable(
    [term("stage"), "candidates", term("gain")],
    stages.map((s) => [
      el(
        "span",
        {},
        el("i", { class: "swatch", style: { background: `var(${colours.get(s.stage) || "--soft"})` } }),
        cut(s.stage, 60),
      ),
      whole(s.count),
      signed(s.gain),
    ]),
    "What each stage gained in hypervolume",
  );
}

// What is one candidate: its scores, what it is made of, how it was asked, and how it leaves as a checkpoint?
import { drawHeat, drawOrigins } from "../charts/heat.js";
import { card, el, empty, fillLog, labelled, plainTable, select } from "../dom.js";
import { cut, duration, number, percent, plusMinus, shell, whole } from "../format.js";
import { anchorNote, term } from "../glossary.js";
import { erase } from "../plot.js";
import { comparisonPart } from "./candidate_compare.js";
import { exportPart } from "./candidate_export.js";
import { sureText } from "./run_front.js";
import { newAddress, runAddress } from "../address.js";

// data: {run, candidate, others: [[pick, text]], log: [lines] | null where there is no server}
// on: {compare(pick), export(name) where there is a server}
export function candidateView(data, on) {
  const { run, candidate: c } = data,
    heat = el("div", { class: "figure" }),
    what = el("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Coefficients" }, heat);
  let found = null; // what is said of it and another
  const versus = comparisonPart(run),
    leaving = on.export ? exportPart(data, on) : { button: null, node: typed(run, c), update() {} };
  const other = select([["", "none"], ...data.others], "", (pick) => {
    asked.value = "";
    on.compare(pick);
  });
  const asked = el("input", {
    type: "text",
    placeholder: "number, recipe, best, knee",
    size: 22,
    "aria-label": "Or compare with",
    onchange: (event) => {
      other.value = "";
      on.compare(event.target.value.trim());
    },
  });
  const log = el("pre", { class: "log", tabindex: "0", "aria-label": "Log" }),
    ours = new RegExp(`^candidate ${c.number}\\b`);
  fillLog(log, data.log && data.log.length ? data.log : ["Nothing was logged."], (line) => ours.test(line));
  const node = el(
    "div",
    {},
    title(run, c, leaving.button, !!on.export),
    anchorNote(c.label),
    c.failure ? el("p", { class: "notice bad" }, `Failed: ${c.failure}`) : null,
    leaving.node,
    el(
      "div",
      { class: "pair" },
      card(
        "scores",
        "Scores",
        [
          "Every metric, on ",
          term("calibration"),
          " items, which the search saw, and on ",
          term("held-out"),
          " ones, with one ",
          term("standard error"),
          ".",
        ],
        scores(run, c),
        sureText(c.sure, c.sure_heldout),
      ),
      card("asked", "How it was asked", null, facts(c), tries(c)),
    ),
    card(
      "compare",
      "Against another",
      "Differences are item by item: positive bars are items on which this candidate is better.",
      el("div", { class: "controls" }, labelled("compare with", other), labelled("or", asked)),
      versus.node,
    ),
    card(
      "coefficients",
      "Coefficients",
      [
        term("coefficients", "How much"),
        " of each expert: rows are groups of tensors, columns experts. With another candidate chosen above: this one " +
          "less that one.",
      ],
      what,
      settings(c),
    ),
    data.log && card("log", "Log", "The run's last lines; this candidate's are marked.", log),
  );

  function drawn() {
    const apart = found && found.coefficients,
      rows = apart || c.coefficients;
    const { groups, experts, picked } = c,
      models = ["base", ...experts];
    if (rows && rows.length) drawHeat(heat, groups, experts, rows, !!apart);
    else if (picked)
      drawOrigins(
        heat,
        groups,
        models,
        groups.map((g) => models.indexOf(picked[g])),
      );
    else
      heat.replaceChildren(
        empty(
          c.failure
            ? "A candidate that failed has none to show."
            : c.left
              ? [
                  "The coefficients of this candidate are in the ledger: ",
                  el("code", {}, `mergeopt show ${shell(run.name)} ${c.number}`),
                ]
              : "This model was scored as it is: it has no coefficients.",
        ),
      );
  }

  return {
    node,
    draw() {
      drawn();
      versus.draw(found);
      const mine = log.querySelector(".mine"); // once it has a size: the latest, or what is of this one
      log.scrollTop = mine ? mine.offsetTop - log.clientHeight / 2 : log.scrollHeight;
    },
    // what the service says of it and another, or null
    compared(now) {
      found = now;
      erase(heat);
      heat.replaceChildren();
      drawn();
      versus.draw(found);
    },
    exported(state) {
      leaving.update(state);
    },
    dispose() {
      erase(heat);
      versus.dispose();
    },
  };
}

function title(run, c, leave, serves) {
  const marks = [
    [c.front, "on the front", "finished"],
    [c.anchor, "anchor", "starting"],
    [c.share < 1, `told from ${percent(c.share)} of the items: scores are estimates`, "starting"],
    [c.feasible === false, "violates a constraint", "failed"],
  ];
  return el(
    "div",
    { class: "head" },
    el(
      "h1",
      {},
      el("a", { href: runAddress(run.name) }, el("span", { class: "name" }, run.name)),
      " ",
      el("span", { class: "soft" }, "/"),
      " ",
      el(
        "span",
        { class: "name" },
        c.number === null
          ? c.label
          : c.label === String(c.number)
            ? `candidate ${c.number}`
            : `${c.label} (${c.number})`,
      ),
      marks.filter(([is]) => is).map(([, text, look]) => el("span", { class: `pill ${look}` }, text)),
    ),
    el(
      "div",
      { class: "actions" },
      leave,
      !serves || c.number === null || c.failure
        ? null
        : el("a", { class: "button", href: newAddress(run.name, c.number) }, "Use as start"),
    ),
  );
}

// Where no server is: the command to type.
const typed = (run, c) =>
  c.number === null || c.failure
    ? null
    : el(
        "p",
        { class: "note" },
        "To take it as a checkpoint: ",
        el("code", {}, `mergeopt export ${shell(run.name)} ${c.number} --out merged`),
      );

function scores(run, c) {
  const goals = new Map(run.objectives.map((o) => [o.name, o.goal])),
    names = [...new Set([...goals.keys(), ...Object.keys(c.measures || {})])];
  const told = (m) => (m ? [number(m.value), plusMinus(m.stderr)] : null);
  return plainTable(
    ["metric", "calibration", "held-out", "items"],
    names.map((name) => {
      const m = (c.measures || {})[name],
        unseen = (c.heldout || {})[name];
      return [
        [cut(name, 60), goals.has(name) ? (goals.get(name) === "max" ? " ↑" : " ↓") : ""],
        told(m),
        told(unseen),
        m && m.count ? `${whole(m.count)}${unseen && unseen.count ? ` + ${whole(unseen.count)}` : ""}` : "–",
      ];
    }),
    "Scores",
  );
}

function facts(c) {
  const rows = [
    [term("stage"), c.stage],
    [term("recipe"), el("code", {}, c.recipe)],
    ["time", duration(c.seconds)],
    ["worker", c.worker],
    ["attempts", c.attempts],
    ["the same as", c.same_as === null ? "" : `candidate ${c.same_as}`],
  ];
  return el(
    "dl",
    { class: "facts" },
    rows
      .filter(([, v]) => v !== null && v !== undefined && v !== "")
      .map(([k, v]) => [el("dt", {}, k), el("dd", {}, typeof v === "number" ? String(v) : v)]),
  );
}

const tries = (c) =>
  c.tries && c.tries.length
    ? plainTable(
        ["worker", "what", "reason"],
        c.tries.map((t) => [t.worker, t.kind, t.reason]),
        "Attempts before the last",
      )
    : null;

function settings(c) {
  const rows = Object.entries(c.settings || {});
  return rows.length
    ? el(
        "dl",
        { class: "facts" },
        rows.map(([k, v]) => [el("dt", {}, k), el("dd", {}, String(v))]),
      )
    : null;
}

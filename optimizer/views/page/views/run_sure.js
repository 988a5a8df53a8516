// How sure is the front, and by which items? What was luck, where the knee is, and what the scores are of.
import { labelOf } from "../charts/framing.js";
import { card, el, empty, fill, plainTable } from "../dom.js";
import { candidateAddress } from "../address.js";
import { term } from "../glossary.js";
import { cut, number, percent, plusMinus, probability, shell, signed, untold, whole } from "../format.js";

// data: {run, table}
export function surePart(data) {
  const about = el("div", {}),
    items = el("div", {});
  const node = el(
    "div",
    { class: "pair" },
    card("sure", "How sure the front is", curseNote(), about),
    card(
      "items",
      "Items",
      [
        "What the scores are of: ",
        term("calibration"),
        " items, which the search saw, and ",
        term("held-out"),
        " ones, which it never did.",
      ],
      items,
    ),
  );

  function update({ run, table }) {
    fill(
      about,
      run.curse.length
        ? plainTable(
            ["objective", term("gap"), "it looked"],
            run.curse.map((gap) => [
              cut(gap.objective, 60),
              [signed(gap.value), plusMinus(gap.stderr)],
              looked(run, gap),
            ]),
            "The winner's curse",
          )
        : empty("Nothing on the front has held-out scores yet."),
      likeliest(run, table),
      knee(run, table),
    );
    fill(
      items,
      plainTable(
        ["evaluator", "calibration", "held-out"],
        Object.entries(run.calibration).map(([name, of]) => [cut(name, 60), whole(of.items), whole(of.heldout)]),
        "Items by evaluator",
      ),
      fidelity(run.fidelity),
      provenance(run.provenance),
      Object.entries(run.broken).map(([label, why]) =>
        el("p", { class: "notice bad" }, `${label} could not be scored as it is: ${why}`),
      ),
    );
  }

  update(data);
  return { node, update };
}

const curseNote = () => [
  "Scores on calibration items, which chose the front, look better than they are (the ",
  term("winner's curse"),
  "). The gap: calibration less held-out, the mean over the front.",
];

function looked(run, { objective, value, stderr }) {
  if (untold(value, stderr)) return "not told apart";
  const goal = (run.objectives.find((o) => o.name === objective) || {}).goal,
    better = goal === "max" ? value : -value;
  return better > 0 ? "better" : better < 0 ? "worse" : "alike";
}

// Of the front the likeliest to be there in truth.
function likeliest(run, t) {
  const known = t.sure.flatMap((p, i) => (p === null || !t.front[i] ? [] : [i])).sort((a, b) => t.sure[b] - t.sure[a]);
  if (!known.length) return null;
  const link = (i) => [
    el("a", { href: candidateAddress(run.name, t.numbers[i]) }, cut(labelOf(t, i), 40)),
    ` ${probability(t.sure[i])}`,
  ];
  return el(
    "p",
    { id: "likeliest" },
    "Likeliest to be on the front in truth: ",
    known.slice(0, 5).flatMap((i, k) => [k ? ", " : "", ...link(i)]),
    `. Above one half: ${known.filter((i) => t.sure[i] > 0.5).length} of ${known.length}. ` +
      `By the calibration items; held-out ones may say otherwise: `,
    el("code", {}, `mergeopt front ${shell(run.name)}`),
    " has both.",
  );
}

function knee(run, t) {
  const i = run.knee === null ? -1 : t.numbers.indexOf(run.knee);
  return i < 0
    ? null
    : el(
        "p",
        { id: "knee" },
        term("knee", "Knee"),
        ": ",
        el("a", { href: candidateAddress(run.name, run.knee) }, `candidate ${run.knee}`),
        ` (${run.objectives.map((o, k) => `${cut(o.name, 40)} ${number(t.values[k][i])}`).join(", ")}), ` +
          "furthest below the line through the front's extremes.",
      );
}

// Where candidates are scored on few items first: how many went on, and whether estimates held.
function fidelity(found) {
  if (!found) return null;
  const said = [
    ["first on", found.rungs.length ? `${found.rungs.map(whole).join(", then ")} of each task` : null],
    [term("told from some items"), `${whole(found.partly)} candidates: estimates, on no front`],
    ["scored on all", `${whole(found.whole)} candidates`],
    ["time", found.time === null ? null : `${percent(found.time)} of what all on all would take`],
    [
      "estimates that held",
      found.checked ? `${whole(found.within)} of ${whole(found.checked)} (95 in 100 should)` : null,
    ],
  ];
  return el(
    "dl",
    { class: "facts", id: "fidelity" },
    said.filter(([, v]) => v !== null).map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]),
  );
}

function provenance(found) {
  const lines = Object.entries(found).flatMap(([evaluator, said]) =>
    said.map((line) =>
      el("li", {}, line.startsWith(`${evaluator}:`) ? null : el("b", {}, `${evaluator}: `), `${line}.`),
    ),
  );
  return lines.length ? el("ul", {}, lines) : null;
}

// Which candidates are there? Every one, filtered, sorted, a page at a time.
import { labelOf } from "../charts/framing.js";
import { breakable, card, el, labelled, select, tick } from "../dom.js";
import { cut, duration, number, percent, plusMinus, probability } from "../format.js";
import { term } from "../glossary.js";
import { pagedTable } from "../table.js";
import { candidateAddress } from "../address.js";

const SHOWN = [
  ["front", "front and anchors"],
  ["all", "all"],
  ["rest", "dominated"],
  ["broken", "violate a constraint"],
  ["some", "told from some items"],
  ["failed", "failed"],
];

const FEW = 3; // objectives whose standard errors have room beside the scores

export function candidatesPart(data, state, choose) {
  let last = data,
    shown = "front",
    text = "",
    brushedOnly = true;
  const t = () => last.table;
  const columns = [
    {
      title: "candidate",
      word: "anchors",
      value: (i) => t().numbers[i],
      cell: (i) => [
        el("a", { href: candidateAddress(last.run.name, t().numbers[i]) }, cut(labelOf(t(), i), 40)),
        labelOf(t(), i) === String(t().numbers[i]) ? "" : ` ${t().numbers[i]}`,
      ],
    },
    {
      title: "rank",
      word: "rank",
      value: (i) => (t().rank[i] < 0 ? null : t().rank[i]),
      cell: (i) =>
        t().failed[i]
          ? ["failed", el("span", { class: "why" }, cut(t().reasons[t().numbers[i]] ?? "", 80))]
          : t().share[i] < 1
            ? `from ${percent(t().share[i])}`
            : t().rank[i] < 0
              ? "repeats"
              : String(t().rank[i] + 1),
    },
    { title: "sure", word: "sure", value: (i) => t().sure[i], cell: (i) => probability(t().sure[i]) },
    ...data.run.objectives.flatMap((o, k) => [
      {
        title: breakable(cut(o.name, 32)),
        value: (i) => t().values[k][i],
        cell: (i) => [number(t().values[k][i]), plusMinus(t().stderr[k][i])],
      },
      {
        title: "held-out",
        word: "held-out",
        value: (i) => t().heldout[k][i],
        cell: (i) =>
          t().heldout[k][i] === null ? "–" : [number(t().heldout[k][i]), plusMinus(t().heldout_stderr[k][i])],
      },
    ]),
    {
      title: "stage",
      word: "stage",
      value: (i) => t().stages[t().stage[i]],
      cell: (i) => cut(t().stages[t().stage[i]] ?? "", 30),
    },
    { title: "time", value: (i) => t().seconds[i], cell: (i) => duration(t().seconds[i]) },
  ];
  const table = pagedTable("Candidates", columns, (i) => choose(t().numbers[i]), data.run.objectives.length > FEW);
  const find = el("input", {
    type: "search",
    placeholder: "number, label, stage or recipe",
    oninput: (event) => {
      text = event.target.value.toLowerCase();
      update();
    },
  });
  const node = card(
    "candidates",
    "Candidates",
    [
      "The best mean first (each objective in units of the ",
      term("anchors' range"),
      "). ",
      term("calibration", "Calibration"),
      " scores chose the ",
      term("front"),
      ": trust the ",
      term("held-out"),
      " ones.",
    ],
    el(
      "div",
      { class: "controls" },
      labelled(
        "show",
        select(SHOWN, shown, (v) => {
          shown = v;
          update();
        }),
      ),
      labelled("find", find),
      tick("only what is brushed above", brushedOnly, (v) => {
        brushedOnly = v;
        update();
      }),
    ),
    table.node,
  );

  function update(now = last) {
    last = now;
    const { numbers, front, anchor, feasible, failed, share, rank, stage, stages, recipe } = t(),
      rows = [];
    const wanted = {
      front: (i) => front[i] || anchor[i],
      all: () => true,
      rest: (i) => !front[i] && !anchor[i] && rank[i] >= 0,
      broken: (i) => !feasible[i] && rank[i] >= 0,
      some: (i) => share[i] < 1 && !failed[i],
      failed: (i) => failed[i],
    }[shown];
    for (let i = 0; i < numbers.length; i++) {
      if (!wanted(i) || (brushedOnly && state.kept && !state.kept[i])) continue;
      if (text && !`${numbers[i]}\n${labelOf(t(), i)}\n${stages[stage[i]]}\n${recipe[i]}`.toLowerCase().includes(text))
        continue;
      rows.push(i);
    }
    rows.sort((a, b) => (rank[a] < 0) - (rank[b] < 0) || rank[a] - rank[b]);
    table.show(rows, state.chosen === null ? -1 : numbers.indexOf(state.chosen));
  }

  return { node, update };
}

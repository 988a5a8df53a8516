// Which trade-offs has a run found? The front by two or three of its objectives, and the candidate that was clicked.
import { labelOf } from "../charts/framing.js";
import { drawFront, zoomTick } from "../charts/front.js";
import { breakable, card, el, empty, fill, labelled, plainTable, select, tick } from "../dom.js";
import { cut, number, plusMinus, probability } from "../format.js";
import { anchorNote, term } from "../glossary.js";
import { erase } from "../plot.js";
import { candidateAddress } from "../address.js";

const KEY = [
  ["dot filled", "front"],
  ["dot open", "held-out"],
  ["diamond", "anchors"],
  ["square", "models as they are"],
  ["dot faint", "dominated"],
];

export function frontPart(data, state, choose) {
  const m = data.run.objectives.length,
    how = { x: 0, y: Math.min(1, m - 1), z: null, heldout: true, bars: false, zoom: null },
    zoom = zoomTick(how, () => update());
  const figure = el("div", { class: "figure tall" }),
    about = el("aside", { class: "about", "aria-live": "polite", "aria-label": "Chosen candidate" });
  const names = data.run.objectives.map((o, i) => [i, cut(o.name, 60)]);
  const set = (axis) => (value) => {
    how[axis] = value === "" ? null : Number(value);
    how.zoom = null;
    solid();
    update();
  };
  const across = select(names, how.x, set("x")),
    up = select(names, how.y, set("y")),
    deep = select([["", "none"], ...names], "", set("z"));
  const node = card(
    "front",
    "Front",
    [
      "Each point is a merge: filled by ",
      term("calibration"),
      " items, which the search saw, open by ",
      term("held-out"),
      " ones. Bars are one ",
      term("standard error"),
      ". Click a point to see it here.",
    ],
    el(
      "div",
      { class: "controls" },
      labelled("across", across),
      labelled("up", up),
      m > 2 ? labelled("deep", deep) : null,
      tick("held-out", how.heldout, (v) => {
        how.heldout = v;
        update();
      }),
      tick("error bars", how.bars, (v) => {
        how.bars = v;
        update();
      }),
      zoom.node,
    ),
    el(
      "div",
      { class: "front" },
      el(
        "div",
        {},
        figure,
        el(
          "ul",
          { class: "key", "aria-label": "Key" },
          KEY.map(([mark, text]) => el("li", {}, el("i", { class: `mark ${mark}` }), term(text))),
        ),
      ),
      about,
    ),
  );
  let last = data,
    was = false;

  // three dimensions are another figure
  function solid() {
    if (was !== (how.z !== null)) {
      was = how.z !== null;
      erase(figure);
      delete figure.dataset.heard;
      figure.replaceChildren();
    }
  }

  function update(now = last, brushed = false) {
    last = now;
    if (!now.table.numbers.length)
      return figure.replaceChildren(
        empty("Nothing is answered yet: the anchors come first, and this page follows by itself."),
      );
    if (figure.querySelector(".empty")) figure.replaceChildren();
    zoom.update(now.table, now.run.references || []);
    drawFront(figure, now.run.objectives, now.table, now.run.references || [], {
      ...how,
      kept: state.kept,
      chosen: state.chosen,
      choose,
      brushed,
    });
    return brushed ? null : chosenCandidate();
  }

  function chosenCandidate() {
    const t = last.table,
      i = state.chosen === null ? first(t) : t.numbers.indexOf(state.chosen);
    if (i < 0) return about.replaceChildren();
    const n = t.numbers[i],
      label = labelOf(t, i),
      address = candidateAddress(last.run.name, n);
    const marks = [
      t.front[i]
        ? "on the front"
        : t.failed[i]
          ? "failed"
          : t.share[i] < 1
            ? "told from some items"
            : t.rank[i] < 0
              ? "the same recipe as an earlier one"
              : "dominated",
      t.anchor[i] ? "anchor" : "",
      t.feasible[i] || t.failed[i] || t.share[i] < 1 ? "" : "violates a constraint",
      last.run.knee === n ? "knee" : "",
    ].filter(Boolean);
    return fill(
      about,
      el(
        "h3",
        {},
        state.chosen === null ? [term("best mean", "Best mean"), ": "] : "",
        el("a", { href: address }, cut(label, 60)),
        label === String(n) ? "" : el("small", {}, ` (${n})`),
      ),
      el("p", { class: "soft" }, marks.join(" · ")),
      anchorNote(label),
      plainTable(
        ["metric", "calibration", "held-out"],
        last.run.objectives.map((o, k) => [
          [breakable(cut(o.name, 40))],
          [number(t.values[k][i]), plusMinus(t.stderr[k][i])],
          [number(t.heldout[k][i]), plusMinus(t.heldout_stderr[k][i])],
        ]),
        "Scores of the chosen candidate",
      ),
      sureText(t.sure[i]),
      el("a", { class: "button", href: address }, "Open candidate"),
    );
  }

  const first = (t) => t.rank.indexOf(0);
  return {
    node,
    update,
    chosen() {
      update();
    },
    brushed() {
      update(last, true);
    },
    dispose() {
      erase(figure);
    },
  };
}

// sure: the probability that in truth no other candidate dominates it, by the calibration items; heldout: by those
// that the search never saw
export const sureText = (sure, heldout = null) =>
  sure === null || sure === undefined
    ? null
    : el(
        "p",
        { class: "soft" },
        `On the front in truth with probability ${probability(sure)} by the calibration items, which chose it` +
          (heldout === null || heldout === undefined
            ? "; held-out items may say otherwise."
            : `, and ${probability(heldout)} by the held-out items.`),
      );

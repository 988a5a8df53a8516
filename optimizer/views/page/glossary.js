// What do the words mean that nobody brings along? Each said once, for the page, the report and every view of them.
import { el } from "./dom.js";

export const WORDS = {
  anchors:
    "Merges that are asked before any search: the base, each expert itself (expert: NAME), all experts equally " +
    "(uniform), and all experts with one coefficient everywhere (global 0.2: 0.2 of each).",
  "anchors' range":
    "From the worst to the best score that the anchors have in an objective. In this unit objectives of any kind " +
    "are compared, and averaged.",
  "best mean":
    "The candidate that is best by the mean of all objectives, each in units of the anchors' range. It goes by a " +
    "name where it is an anchor (global 0.2: 0.2 of each expert, everywhere), else by its number.",
  calibration: "Items that the search saw, and chose by. Scores on them look a little better than they are.",
  coefficients: "How much of each expert is in each group of tensors: 0 is nothing of it, 1 the whole of it.",
  coordinate:
    "One number that the search sets: the coefficient of an expert in a group of tensors (group|expert), or an " +
    "option of the merge method.",
  dominated: "Another candidate is at least as good in every objective, and better in one.",
  driver: "What decides which candidate is scored next.",
  epsilon:
    "The least shift, in units of the anchors' range, by which one set of candidates would cover another. 0: it " +
    "covers it as it is.",
  front: "The candidates that no other dominates: to gain in one objective, something of another must be given up.",
  gain: "What the candidates of this stage added to the hypervolume.",
  gap: "The score on calibration items less that on held-out ones, the mean over the front's candidates.",
  "held-out": "Items that the search never saw. These are the scores to trust.",
  hypervolume:
    "How good the front is as a whole, in one number: how much it dominates, in units of the box between the " +
    "anchors' worst and best scores. The anchors alone, so what needs no search, are mostly well above 0; 1 is the " +
    "best of each of them at once, and more is possible.",
  "IGD+":
    "How far one front stays behind another: the mean, over the other front, of the distance to what is not reached " +
    "here, in units of the anchors' range. 0: all of it is reached.",
  knee:
    "Where a front bends most: before it much is gained for little, beyond it a little more of one objective costs " +
    "much of another.",
  method: "How experts are put together, given how much of each.",
  "models as they are": "The base and experts, not merged at all, for comparison.",
  rank:
    "The place by the mean of all objectives, 1 the best. repeats: the same merge as an earlier one. from 25 %: told " +
    "from so much of the items.",
  recipe: "The fingerprint of a merge: the same recipe is the same model, bit for bit.",
  share:
    "Of all that a metric varies over the candidates, the part that goes with this coordinate; all shares together " +
    "are 100 %.",
  stage: "What the driver was at when it asked for a candidate: the anchors first, then the parts of its search.",
  "standard error": "How far a score may well be off by the luck of its items: the number after ±.",
  sure:
    "How probable it is that in truth no other candidate dominates this one, by the calibration items. Low does not " +
    "mean bad: candidates that are alike take it from one another.",
  "told from some items": "Scored on a part of the items alone, so its scores are estimates; it is on no front.",
  "winner's curse": "What was chosen by its score was also lucky with it, so that this score looks too good.",
};

// Where a screen reader finds what a word means.
export const idOf = (word) => `word-${word.replace(/[^A-Za-z]+/g, "-")}`;

// What an element has that says this word, or something to press that goes by it.
export function explains(word) {
  if (!(word in WORDS)) throw new Error(`no such word: ${word}`);
  return { "data-word": word, "aria-describedby": idOf(word) };
}

// The word where it stands, in these letters; tips.js shows what it means to who points at it, tabs to it or taps it.
export const term = (word, text = word) => el("button", { type: "button", class: "term", ...explains(word) }, text);

const ANCHORS = [
  [/^base$/, () => "The base itself: nothing of any expert."],
  [/^expert: /, () => "That expert itself, not merged with any other."],
  [/^alone: /, () => "What the merge method makes of that expert alone, which it changes."],
  [/^uniform$/, () => "All experts equally: their average."],
  [/^global (\S+)$/, (x) => `Every expert with the coefficient ${x} in every group of tensors.`],
  [/^start$/, () => "Where the job says that the search begins."],
];

// What a merge is that goes by this label, or null where that is a number or a stage of the search. Of several methods
// each has its own, named after it in brackets.
export function anchorSaid(label) {
  const bare = String(label).replace(/^((?:base|uniform|start|global \S+|(?:expert|alone): .*?)) \([\w-]+\)$/, "$1");
  for (const [pattern, said] of ANCHORS) {
    const match = pattern.exec(bare);
    if (match) return said(match[1]);
  }
  return null;
}

// The same as a line below the label.
export function anchorNote(label) {
  const said = anchorSaid(label);
  return said === null ? null : el("p", { class: "note" }, said);
}

// How far is a run, what may be done with it, and what is the word on it?
import { newAddress, runAddress } from "../address.js";
import { pill, progress } from "../charts/small.js";
import { breakable, button, el, fill } from "../dom.js";
import { ago, duration, number, shell, spentText, whole } from "../format.js";
import { term } from "../glossary.js";

const KINDS = ["csv", "json", "parquet"];

// on: {stop, cancel, resume, download} where there is a server; else the commands are told
export function headPart(data, on) {
  const status = el("span"),
    time = el("span"),
    names = ["answered", ["on the ", term("front")], term("hypervolume"), "failed", time, "spent"],
    titles = [...names, term("driver"), term("method")],
    facts = titles.map(() => el("dd")), // their texts change, and a word that is being read about stays
    tiles = el(
      "dl",
      { class: "tiles" },
      titles.map((name, i) => el("div", {}, el("dt", {}, name), facts[i])),
    ),
    verdict = el("p", { class: "verdict" }),
    actions = el("div", { class: "actions" }),
    bar = el("div", {}),
    phase = el("p", { class: "note phase", role: "status" });
  const { name } = data.run,
    address = runAddress(name);
  const node = el(
    "div",
    { class: "run-head" },
    el("div", { class: "head" }, el("h1", {}, el("span", { class: "name" }, name), status), actions),
    bar,
    phase,
    tiles,
    verdict,
    el(
      "nav",
      { class: "links", "aria-label": "This run" },
      el("a", { href: `${address}/pick` }, "Pick a trade-off"),
      el("a", { href: `${address}/c/best` }, "Best candidate"),
      on.download
        ? [
            el("a", { href: newAddress(name) }, "New search like this"),
            el("span", { class: "soft" }, "Table:"),
            KINDS.map((kind) =>
              button(kind, () => on.download(kind), { class: "link", "aria-label": `Download the table as ${kind}` }),
            ),
          ]
        : el("span", { class: "soft" }, "A live page, exports and a resume button: ", el("code", {}, "mergeopt serve")),
    ),
  );

  function update({ run, table }) {
    fill(status, pill(run.status));
    fill(bar, progress(run.answered, run.evaluations, `${run.answered} of ${run.evaluations} answered`));
    fill(phase, said(run, table, on));
    phase.hidden = !phase.textContent;
    const front = table.front.reduce((n, f) => n + (f ? 1 : 0), 0);
    const values = [
      `${whole(run.answered)} of ${whole(run.evaluations)}`,
      whole(front),
      number(run.hypervolume),
      whole(run.failed),
      run.status === "running" ? duration(run.eta_seconds) : ago(run.updated),
      spentText(run.spent),
      run.driver,
      run.method,
    ];
    time.textContent = run.status === "running" ? "time left" : "changed";
    facts.forEach((dd, i) => fill(dd, values[i] === null || values[i] === undefined ? "–" : breakable(values[i])));
    const constraints = (run.constraints || []).length ? `Where ${run.constraints.join(", ")}. ` : "";
    verdict.textContent = [constraints, run.error || "", run.verdict || ""].join("");
    verdict.hidden = !verdict.textContent;
    if (on.stop) fill(actions, offered(run, on));
  }

  update(data);
  return { node, update };
}

// What a run is at: the search is not its end.
function said(run, table, on) {
  const lives = run.status === "running",
    held = run.heldout_asked ? `${whole(run.heldout_answered)} of ${whole(run.heldout_asked)} are.` : "";
  if (run.status === "starting" || !run.answered) return "";
  if (run.phase === "finalists")
    return (
      "The search is over. Of the candidates that were told from some items the most promising are " +
      `${lives ? "now" : "yet to be"} scored on all; then the front on held-out items.`
    );
  if (run.phase === "heldout" && lives)
    return (
      "The search is over. Front, anchors and models are now scored on held-out items: " +
      `${held || "about to begin."}`
    );
  if (lives) return "";
  if (run.phase === "over") return early(run);
  const searching = run.phase === "search",
    front = table.front.reduce((n, f) => n + (f ? 1 : 0), 0),
    without = table.front.reduce((n, f, i) => n + (f && table.heldout[0][i] === null ? 1 : 0), 0);
  if (searching && !without) return ""; // the front of now has them, from a search that went on since
  const why = searching
    ? "Stopped before the search was over, so " +
      `${without === front ? "the front of now has" : `${whole(without)} of ${whole(front)} on the front have`} ` +
      "no held-out scores"
    : "Stopped before front, anchors and models were scored on held-out items";
  const now = searching ? "They come when it is. " : "",
    again = on.resume
      ? button("Score them now", () => on.resume(searching ? run.answered : null), { class: "link" })
      : el("code", {}, `mergeopt resume ${shell(run.name)}${searching ? ` --evaluations ${run.answered}` : ""}`);
  return [
    why,
    held && !searching ? `: ${held} ` : ". ",
    now,
    again,
    on.resume ? "" : " scores them now",
    searching ? `, with no candidate beyond these ${whole(run.answered)}.` : ".",
  ];
}

// Why a search ended before its number of candidates, and what would have it go on.
function early(run) {
  if (run.answered >= run.evaluations) return "";
  if (run.reached) return `The budget ended the search: ${run.reached}. With more of it in its job it can go on.`;
  if (!run.driver_done) return "";
  const again = run.repeated ? ` that is new (it asked ${whole(run.repeated)} times for what was known already)` : "";
  return (
    `Ended at ${whole(run.answered)} of ${whole(run.evaluations)}: its driver has nothing left to ask${again}. ` +
    `To resume it takes a number above ${whole(run.evaluations)}, and a driver that then has more to ask; ` +
    "else a new search like this with another driver."
  );
}

function offered(run, on) {
  if (run.status === "running" || run.status === "starting")
    return [
      button("Stop", on.stop, { title: "Ends after what is being scored; resume goes on" }),
      button("Cancel", on.cancel, { class: "quiet", title: "Ends at once; nothing answered is lost" }),
    ];
  const more = el("input", {
    type: "number",
    min: 1,
    step: 1,
    class: "short",
    placeholder: String(run.evaluations ?? ""),
    "aria-label": "Evaluations in all",
  });
  return [
    el("label", { class: "soft" }, "up to ", more),
    button("Resume", () => on.resume(more.value ? Number(more.value) : null)),
  ];
}

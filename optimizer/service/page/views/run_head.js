// How far is a run, what may be done with it, and what is the word on it?
import { progress } from "../charts/small.js";
import { breakable, button, el } from "../dom.js";
import { ago, duration, number, spentText, whole } from "../format.js";
import { pill, runAddress } from "./runs.js";

const KINDS = ["csv", "json", "parquet"];

export function headPart(data, on) {
  const status = el("span"), tiles = el("dl", { class: "tiles" }), verdict = el("p", { class: "verdict" }), actions = el("div", { class: "actions" }), bar = el("div", {});
  const address = runAddress(data.run.name);
  const node = el("div", { class: "run-head" },
    el("div", { class: "head" }, el("h1", {}, el("span", { class: "name" }, data.run.name), status), actions), bar, tiles, verdict,
    el("nav", { class: "links", "aria-label": "This run" }, el("a", { href: `${address}/pick` }, "Pick a trade-off"), el("a", { href: `${address}/c/best` }, "Best candidate"),
      el("a", { href: `#/new?run=${encodeURIComponent(data.run.name)}` }, "New search like this"),
      el("span", { class: "soft" }, "Table:"), KINDS.map((kind) => button(kind, () => on.download(kind), { class: "link", "aria-label": `Download the table as ${kind}` }))));

  function update({ run, table }) {
    status.replaceChildren(pill(run.status));
    bar.replaceChildren(progress(run.answered, run.evaluations, `${run.answered} of ${run.evaluations} answered`));
    const front = table.front.reduce((n, f) => n + (f ? 1 : 0), 0);
    const facts = [["answered", `${whole(run.answered)} of ${whole(run.evaluations)}`], ["on the front", whole(front)], ["hypervolume", number(run.hypervolume)],
      ["failed", whole(run.failed)], run.status === "running" ? ["time left", duration(run.eta_seconds)] : ["changed", ago(run.updated)], ["spent", spentText(run.spent)],
      ["driver", run.driver], ["method", run.method]];
    tiles.replaceChildren(...facts.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value === null || value === undefined ? "–" : breakable(value)))));
    const constraints = (run.constraints || []).length ? `Where ${run.constraints.join(", ")}. ` : "";
    verdict.textContent = [constraints, run.error || "", run.verdict || ""].join("");
    verdict.hidden = !verdict.textContent;
    actions.replaceChildren(...offered(run, on));
  }

  update(data);
  return { node, update };
}

function offered(run, on) {
  if (run.status === "running" || run.status === "starting") return [button("Stop", on.stop, { title: "Ends after what is being scored; resume goes on" }), button("Cancel", on.cancel, { class: "quiet", title: "Ends at once; nothing answered is lost" })];
  const more = el("input", { type: "number", min: 1, step: 1, class: "short", placeholder: String(run.evaluations ?? ""), "aria-label": "Evaluations in all" });
  return [more, button("Resume", () => on.resume(more.value ? Number(more.value) : null))];
}

// What is known of a search that was started, and is no run yet?
import { pill } from "../charts/small.js";
import { newAddress } from "../address.js";
import { button, el, fill } from "../dom.js";

// data: {run: Summary, log: [lines]}; on: {cancel, forget, resume}
export function startingView(data, on) {
  const status = el("span"),
    actions = el("div", { class: "actions" }),
    word = el("p", { role: "status" }),
    lines = el("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
  let shown = "";
  const node = el(
    "div",
    {},
    el("div", { class: "head" }, el("h1", {}, el("span", { class: "name" }, data.run.name), status), actions),
    word,
    el("section", { class: "card", "aria-label": "Log" }, lines),
  );

  function update({ run, log }) {
    fill(status, pill(run.status));
    word.className = run.error ? "notice bad" : "note";
    word.textContent =
      run.error ||
      "It looks at its models and data, then starts its workers: the log says how far it is. " +
        "The view of the run follows by itself.";
    if (run.status === shown) return; // buttons stay as they are: one may be in focus
    shown = run.status;
    fill(actions, shown === "starting" ? cancelling(on) : run.evaluations ? again(on) : givenUp(run, on));
    lines.textContent = log.join("\n") || "Nothing was said yet.";
  }

  update(data);
  return { node, update };
}

const cancelling = (on) => button("Cancel", on.cancel, { title: "Ends at once; what is no run yet is forgotten" });

const again = (on) => button("Resume", on.resume);

// Of what never became a run.
const givenUp = (run, on) => [
  el("a", { class: "button", href: newAddress(run.name) }, "Its job again"),
  button("Forget", on.forget, { class: "quiet", title: "Takes it off the list; its name is free in any case" }),
];

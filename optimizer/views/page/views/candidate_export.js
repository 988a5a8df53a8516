// How does a candidate leave? As a checkpoint, with progress, its path, and a check that it scores the same.
import { progress } from "../charts/small.js";
import { button, el, fill, labelled } from "../dom.js";

// state: {state, progress, step, path, error, rescored} as the service says it
export function exportPart(data, on) {
  const name = el("input", { type: "text", placeholder: "as the candidate is called", maxlength: 80 }),
    said = el("div", { role: "status" });
  const go = button(
    "Export",
    () => {
      go.disabled = true;
      on.export(name.value.trim() || null);
    },
    { class: "primary" },
  );
  const form = el(
    "div",
    { class: "card", hidden: true },
    el("div", { class: "controls" }, labelled("folder", name), go),
    said,
  );
  const opener = button(
    "Export",
    () => {
      form.hidden = !form.hidden;
      opener.setAttribute("aria-expanded", String(!form.hidden));
      if (!form.hidden) name.focus();
    },
    {
      class: "primary",
      "aria-expanded": "false",
      disabled: !!data.candidate.failure || data.candidate.number === null,
    },
  );

  function update(state) {
    form.hidden = false;
    opener.setAttribute("aria-expanded", "true");
    const over = Boolean(state.error) || state.state === "done" || state.state === "failed";
    go.disabled = !over;
    if (state.error) return said.replaceChildren(el("p", { class: "notice bad" }, state.error));
    const share = state.progress ?? 0;
    return fill(
      said,
      progress(share, 1, "Export"),
      el(
        "p",
        { class: "soft" },
        over
          ? state.rescored
            ? "Exported; loaded again it scores what the ledger says."
            : "Exported."
          : state.step || "Waiting for its turn …",
      ),
      state.path && over ? el("p", {}, el("code", {}, state.path)) : "",
    );
  }

  return { node: form, button: opener, update };
}

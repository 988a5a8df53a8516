// Which runs are there, how far are they, and what have they found?
import { candidateAddress, runAddress } from "../address.js";
import { pill, progress, spark } from "../charts/small.js";
import { button, el, empty } from "../dom.js";
import { ago, cut, duration, number, spentText, whole } from "../format.js";
import { term } from "../glossary.js";

// first: [Summary], of `folder`; on: {compare(names)}
export function runsView(first, folder, on) {
  const chosen = new Set(),
    list = el("div", { class: "runs" });
  const compare = button("Compare", () => on.compare([...chosen]), { class: "quiet", disabled: true });
  const node = el(
    "div",
    {},
    el(
      "div",
      { class: "head" },
      el("h1", {}, "Runs"),
      el("div", { class: "actions" }, compare, el("a", { class: "button primary", href: "#/new" }, "New search")),
    ),
    list,
  );

  function choose(name, kept) {
    kept ? chosen.add(name) : chosen.delete(name);
    compare.disabled = chosen.size < 2;
    compare.textContent = chosen.size > 1 ? `Compare ${chosen.size} runs` : "Compare";
  }

  function update(runs) {
    if (!runs.length)
      return list.replaceChildren(
        empty(
          `No runs in ${folder || "this folder"} yet: start one with New search, or serve another folder ` +
            "with mergeopt serve --runs FOLDER.",
        ),
      );
    const titles = [
      "",
      "Run",
      "Progress",
      term("best mean", "Best so far"),
      term("hypervolume", "Hypervolume"),
      "Time left",
      "Spent",
      "Changed",
    ];
    return list.replaceChildren(
      el(
        "table",
        { class: "cards" },
        el("caption", { class: "hidden" }, "Runs"),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            titles.map((t) => el("th", { scope: "col" }, t || el("span", { class: "hidden" }, "Compare"))),
          ),
        ),
        el(
          "tbody",
          {},
          runs.map((r) => line(r, chosen.has(r.name), choose)),
        ),
      ),
    );
  }

  update(first);
  return { node, update };
}

function line(r, kept, choose) {
  const box = el("input", {
    type: "checkbox",
    checked: kept,
    "aria-label": `Compare ${r.name}`,
    onchange: (event) => choose(r.name, event.target.checked),
  });
  const name = el(
    "th",
    { scope: "row" },
    el("a", { href: runAddress(r.name) }, cut(r.name, 80)),
    " ",
    pill(r.status),
    el("small", {}, r.error ? cut(r.error, 200) : [r.method, r.driver].filter(Boolean).join(" · ")),
  );
  if (r.error && !r.evaluations)
    return el(
      "tr",
      { class: "broken" },
      el("td", { class: "pick" }),
      name,
      ...Array.from({ length: 6 }, () => el("td", { class: "none" }, "–")),
    );
  const cells = [
    [
      "Progress",
      [
        progress(r.answered, r.evaluations, `${r.answered} of ${r.evaluations} answered`),
        el(
          "small",
          {},
          `${whole(r.answered)} of ${whole(r.evaluations)}${r.failed ? ` · ${whole(r.failed)} failed` : ""}`,
        ),
      ],
    ],
    ["Best so far", bestOf(r)],
    ["Hypervolume", r.answered ? [spark(r.spark), el("span", { class: "figure-number" }, number(r.hypervolume))] : "–"],
    ["Time left", r.status === "running" ? duration(r.eta_seconds) : "–"],
    [
      "Spent",
      spentText(r.spent)
        .split(" · ")
        .map((text) => el("div", {}, text)),
    ],
    ["Changed", ago(r.updated)],
  ];
  return el(
    "tr",
    {},
    el("td", { class: "pick" }, box),
    name,
    cells.map(([title, content]) => el("td", { "data-title": title }, content)),
  );
}

function bestOf(r) {
  if (!r.best) return "–";
  const values = r.objectives.map((o) => [o.name, r.best.values[o.name]]);
  return [
    el("a", { href: candidateAddress(r.name, r.best.number) }, cut(r.best.label, 30)),
    el(
      "small",
      {},
      values
        .slice(0, 3)
        .map(([name, v]) => `${cut(name, 24)} ${number(v)}`)
        .join(", ") + (values.length > 3 ? `, +${values.length - 3}` : ""),
    ),
  ];
}

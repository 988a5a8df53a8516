// What is to be searched? A form makes a job, checks say what it needs and costs, and then it starts.
import { button, card, el, labelled, plainTable } from "../dom.js";
import { bytes, duration, shell, whole } from "../format.js";
import { runAddress } from "../address.js";

// data: {yaml | null, name, from: text | null}; on: {draft(given), check(yaml), launch({yaml, name,
// address})}; each returns a promise; its error's message is shown where it belongs.
export function newView(data, on) {
  const base = el("input", { type: "text", placeholder: "models/base", spellcheck: "false" }),
    experts = pairs("expert", "math", "models/math"),
    sets = pairs("data", "math", "data/math.jsonl");
  const yaml = el("textarea", { rows: 22, spellcheck: "false", "aria-label": "The job as YAML", oninput: stale }),
    name = el("input", {
      type: "text",
      value: data.name || "",
      maxlength: 80,
      spellcheck: "false",
      placeholder: "the job's own",
    });
  const address = el("input", { type: "text", placeholder: "this machine", spellcheck: "false" }),
    drafted = el("div", { role: "status" }),
    checked = el("div", { role: "status" }),
    launched = el("div", { role: "status" });
  const draft = button("Draft the job", () => busy(draft, drafted, drafting)),
    check = button("Check", () => busy(check, checked, checking)),
    launch = button("Launch", () => busy(launch, launched, launching, true), { class: "primary", disabled: true });
  yaml.value = data.yaml || "";
  const node = el(
    "div",
    {},
    el("div", { class: "head" }, el("h1", {}, "New search")),
    data.from
      ? el("p", { class: "note" }, data.from)
      : card(
          "models",
          "1. Models and data",
          "Folders of checkpoints on the machine that serves, or names on the hub if it may download; " +
            "data as JSON lines. The draft looks at the models.",
          el("div", { class: "form" }, labelled("base", base), experts.node, sets.node, el("div", {}, draft)),
          drafted,
        ),
    card(
      "job",
      data.from ? "1. The job" : "2. The job",
      "Every key is in docs/job.md. Edit freely: nothing starts before Launch.",
      yaml,
      el("div", { class: "controls" }, check),
      checked,
    ),
    card(
      "launch",
      data.from ? "2. Launch" : "3. Launch",
      "Only a job that was checked as it stands can be launched.",
      el("div", { class: "controls" }, labelled("name", name), labelled("cluster", address), launch),
      launched,
    ),
  );

  function stale() {
    launch.disabled = true;
    checked.replaceChildren();
  }

  async function drafting() {
    if (!base.value.trim()) throw new Error("name the base: a folder, or a model on the hub");
    const made = await on.draft({ base: base.value.trim(), experts: experts.read(), data: sets.read() });
    const own = nameIn(made.yaml);
    if (!name.value.trim() || name.value === nameIn(yaml.value)) name.value = own;
    yaml.value = made.yaml;
    stale();
    return el("p", { class: "soft" }, "Drafted below.");
  }

  async function checking() {
    const asked = yaml.value,
      found = await on.check(asked);
    launch.disabled = !found.ok || yaml.value !== asked;
    return el(
      "div",
      {},
      found.ok
        ? el("p", { class: "notice good" }, "This job can run.")
        : el(
            "ul",
            { class: "notice bad" },
            found.problems.map((p) => el("li", {}, p)),
          ),
      planned(found.plan),
    );
  }

  async function launching() {
    const { run, address: there } = await on.launch({
      yaml: yaml.value,
      ...(name.value.trim() ? { name: name.value.trim() } : {}),
      ...(address.value.trim() ? { address: address.value.trim() } : {}),
    });
    if (there)
      return el(
        "p",
        { class: "notice good" },
        `Sent to ${there}, which keeps it. `,
        el("code", {}, `mergeopt watch ${shell(run)} --address ${shell(there)}`),
        " follows it; ",
        el("code", {}, `mergeopt fetch ${shell(run)} --address ${shell(there)}`),
        ", given here, brings it among these runs.",
      );
    return el("p", { class: "notice good" }, "Started: ", el("a", { href: runAddress(run) }, run), ".");
  }

  return { node };
}

// What a job that was drafted calls itself.
const nameIn = (yaml) => (/^name: *([\w.-]+)/m.exec(yaml) || [null, ""])[1];

// once: what went well is not done again
async function busy(by, where, work, once = false) {
  let refused = false;
  by.disabled = true;
  where.replaceChildren(el("p", { class: "soft" }, "Working …"));
  try {
    where.replaceChildren(await work());
  } catch (error) {
    refused = true;
    where.replaceChildren(el("p", { class: "notice bad" }, error.message));
  }
  if (refused || !once) by.disabled = false;
}

// Rows of a name and a path, one more at a click.
function pairs(what, name, path) {
  const rows = el("div", { class: "rows" });
  const add = () => {
    const n = rows.children.length + 1;
    rows.append(
      el(
        "div",
        { class: "row" },
        el("input", { type: "text", placeholder: name, spellcheck: "false", "aria-label": `Name of ${what} ${n}` }),
        el("input", { type: "text", placeholder: path, spellcheck: "false", "aria-label": `Path of ${what} ${n}` }),
        button(
          "×",
          (event) => {
            event.target.parentElement.remove();
          },
          { class: "quiet", "aria-label": `Remove ${what} ${n}` },
        ),
      ),
    );
  };
  add();
  add();
  return {
    node: el(
      "fieldset",
      {},
      el("legend", {}, what === "data" ? "data" : "experts"),
      rows,
      button(`Add ${what === "data" ? "data" : "an expert"}`, add, { class: "link" }),
    ),
    read() {
      const found = [...rows.children]
        .map((row) => [...row.querySelectorAll("input")].map((i) => i.value.trim()))
        .filter(([key, value]) => key || value);
      const half = found.find(([key, value]) => !key || !value),
        twice = found.find(([key], i) => found.findIndex(([other]) => other === key) < i);
      if (half) throw new Error(`${what}: ${half.join("")} needs a name and a path`);
      if (twice) throw new Error(`${what}: ${twice[0]} is there twice; give each a name of its own`);
      if (!found.length && what === "expert") throw new Error("name at least one expert, and its path");
      return Object.fromEntries(found);
    },
  };
}

// What people ask of a plan first; what is not known, or none, is left out.
const budgetOf = (unit, said) => [said, (p) => (p.budget && p.budget[unit] ? whole(p.budget[unit]) : "")];
const size = (n) => (n ? bytes(n) : "");
const TOLD = [
  ["experts", (p) => (p.experts || []).join(", ")],
  ["parameters", (p) => (p.parameters ? `${whole(p.parameters)}${p.dtype ? `, in ${p.dtype}` : ""}` : "")],
  ["memory of a worker", (p) => size(p.worker_bytes)],
  [
    "memory of all workers",
    (p) =>
      p.on_cpu && p.workers > 1 && p.worker_bytes
        ? `${bytes(p.workers * p.worker_bytes)} (${whole(p.workers)} at once)`
        : "",
  ],
  ["memory that is free", (p) => size(p.on_cpu ? p.available_bytes : p.device_available_bytes)],
  ["models on disk", (p) => size(p.pool_bytes)],
  ["cache", (p) => (p.cache_bytes ? `at most ${bytes(p.cache_bytes)}: ${p.cache_said}` : "")],
  ["writing one candidate", (p) => (p.merge_seconds ? duration(p.merge_seconds) : "")],
  [
    "writing all of them",
    (p) =>
      p.merge_seconds && p.evaluations
        ? `${duration((p.evaluations + (p.gradients || 0)) * p.merge_seconds)} by one worker; scoring them comes on top`
        : "",
  ],
  ["evaluations", (p) => (p.evaluations ? whole(p.evaluations) : "")],
  budgetOf("hours", "hours at most"),
  budgetOf("gpu_hours", "GPU hours at most"),
  budgetOf("money", "money at most"),
  budgetOf("price_per_hour", "price an hour"),
  ["but", (p) => (p.warnings || []).join("; ")],
];

// What `mergeopt check --paper` says: what people ask for first, and all of it, in its sentences, at a click.
function planned(plan) {
  if (!plan) return "";
  return el(
    "div",
    { class: "plan" },
    plainTable(
      ["what it needs", ""],
      TOLD.map(([said, of]) => [said, of(plan)]).filter(([, text]) => text),
      "What the job needs",
    ),
    el(
      "details",
      {},
      el("summary", {}, "All that the check says"),
      el(
        "dl",
        { class: "facts" },
        Object.entries(plan.said || {}).map(([what, text]) => [el("dt", {}, what), el("dd", {}, text)]),
      ),
    ),
  );
}

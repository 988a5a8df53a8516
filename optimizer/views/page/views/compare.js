// Which of several runs found the better trade-offs? Their fronts over one another, or why they may not be compared.
import { card, el, labelled, plainTable, select } from "../dom.js";
import { better, cut, number, whole } from "../format.js";
import { colour, draw, erase, plain, STAGES } from "../plot.js";
import { term } from "../glossary.js";
import { runAddress } from "../address.js";

// data: {names, refused: text | null, objectives, runs: [Front]} as the service says them
export function compareView(data) {
  const head = el("div", { class: "head" }, el("h1", {}, "Compare runs"));
  if (data.refused)
    return {
      node: el(
        "div",
        {},
        head,
        el("p", { class: "notice" }, `${data.names.join(", ")}: ${data.refused}`),
        el("p", { class: "empty" }, "Choose runs of the same objectives and the same calibration items under Runs."),
      ),
    };
  const m = data.objectives.length,
    how = { x: 0, y: Math.min(1, m - 1) },
    figure = el("div", { class: "figure tall" });
  const names = data.objectives.map((o, i) => [i, cut(o.name, 60)]);
  const set = (axis) => (value) => {
    how[axis] = Number(value);
    drawn();
  };
  const colours = data.runs.map((_, i) => STAGES[i % STAGES.length]);
  const node = el(
    "div",
    {},
    head,
    card(
      "fronts",
      "Fronts",
      [
        "Each run's ",
        term("front"),
        ", on the ",
        term("calibration"),
        " items that they share. Open: ",
        term("held-out"),
        ".",
      ],
      el(
        "div",
        { class: "controls" },
        labelled("across", select(names, how.x, set("x"))),
        labelled("up", select(names, how.y, set("y"))),
      ),
      figure,
    ),
    card(
      "runs",
      "Runs",
      null,
      plainTable(
        [
          "run",
          "on the front",
          term("hypervolume"),
          "answered",
          ...data.objectives.map((o) => `best ${cut(o.name, 30)}`),
        ],
        data.runs.map((f, i) => [
          el(
            "span",
            {},
            el("i", { class: "swatch", style: { background: `var(${colours[i]})` } }),
            el("a", { href: runAddress(f.name) }, cut(f.name, 60)),
          ),
          whole(f.values[0] ? f.values[0].length : 0),
          number(f.hypervolume),
          whole(f.answered),
          ...data.objectives.map((o, k) =>
            number(
              f.values[k] && f.values[k].length
                ? f.values[k].reduce((a, b) => ((o.goal === "max") === b > a ? b : a))
                : null,
            ),
          ),
        ]),
        "Runs",
      ),
    ),
    card(
      "against",
      "Who falls short of whom",
      [
        "How far the front of the row is from that of the column, in units of the row's ",
        term("anchors' range"),
        ": ",
        term("IGD+"),
        " (0: all that the other reaches is reached here), and ε, ",
        term("epsilon"),
        ", the least shift by which it covers the other's.",
      ],
      plainTable(
        ["front of", ...data.runs.map((f) => cut(f.name, 40))],
        data.runs.map((f) => [
          cut(f.name, 60),
          ...data.runs.map((g) =>
            f.against[g.name] ? [number(f.against[g.name].igd_plus), ` ε ${number(f.against[g.name].epsilon)}`] : "–",
          ),
        ]),
        "Fronts against one another",
      ),
    ),
  );

  function drawn() {
    const axis = (k) => ({
      title: { text: `${plain(cut(data.objectives[k].name, 44))} (${better(data.objectives[k].goal)})`, standoff: 10 },
    });
    const symbols = ["circle", "diamond", "square", "triangle-up", "x", "star"];
    draw(
      figure,
      data.runs
        .map((f, i) => ({
          type: "scatter",
          mode: "markers",
          name: plain(cut(f.name, 40)),
          x: f.values[how.x],
          y: f.values[how.y],
          customdata: f.numbers,
          marker: { color: colour(colours[i]), size: 10, symbol: symbols[i % symbols.length], opacity: 0.85 },
          hovertemplate: `${plain(cut(f.name, 40))}, candidate %{customdata}<br>%{x:.3f}, %{y:.3f}<extra></extra>`,
        }))
        .concat(
          data.runs.map((f, i) => ({
            type: "scatter",
            mode: "markers",
            name: plain(cut(f.name, 40)),
            x: f.heldout[how.x],
            y: f.heldout[how.y],
            customdata: f.numbers,
            marker: { color: colour(colours[i]), size: 9, symbol: `${symbols[i % symbols.length]}-open`, opacity: 0.6 },
            hovertemplate:
              `${plain(cut(f.name, 40))}, candidate %{customdata}, held-out<br>%{x:.3f}, ` + "%{y:.3f}<extra></extra>",
          })),
        ),
      { xaxis: axis(how.x), yaxis: axis(how.y) },
      `Fronts of ${data.runs.map((f) => f.name).join(", ")}.`,
    );
  }

  return {
    node,
    draw: drawn,
    dispose() {
      erase(figure);
    },
  };
}

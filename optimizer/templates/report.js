// Draws the report from the JSON beside it. Every text that reaches Plotly goes through plain(): it reads HTML in labels.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(1) : x.toFixed(3));
const plusMinus = (x) => (x === null ? "" : ` ± ${number(x)}`); // null: not known
const objectives = data.objectives.map((o) => o.name);
const byRank = [...data.candidates].sort((a, b) => a.rank - b.rank);
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

function layout(extra) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--ink"), size: 13 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--ink") },
    margin: { l: 60, r: 20, t: 16, b: 50 }, hovermode: "closest", legend: { orientation: "h", y: 1.08 },
  };
  const merged = { ...base, ...extra };
  for (const key of ["xaxis", "yaxis", "yaxis2"]) if (extra[key]) merged[key] = { ...axis, ...extra[key] };
  return merged;
}

const goal = (i) => (data.objectives[i].goal === "max" ? "higher is better" : "lower is better");
const title = (i) => `${plain(objectives[i])} (${goal(i)})`;
const describe = (c, values, errors, where) =>
  `<b>${plain(c.label)}</b> · ${where}<br>${plain(c.stage)}<br>` +
  objectives.map((o, i) => `${plain(o)} ${number(values[i])}${plusMinus(errors[i])}`)
    .concat(c.settings.slice(0, 10).map(([name, value]) => `${plain(name)}: ${plain(value)}`),
      c.settings.length > 10 ? [`and ${c.settings.length - 10} more`] : []).join("<br>");
const settings = (c) => c.settings.map(([name, value]) => `${name}: ${value}`).join(", ");
const searched = data.candidates.some((c) => c.settings.length); // options, or the method

function trace(name, rows, x, y, heldout, marker, extra = {}) {
  const value = (c) => (heldout ? c.heldout : c.value);
  const error = (c) => (heldout ? c.heldoutStderr : c.stderr);
  const bars = (k) => ({ type: "data", array: rows.map((c) => error(c)[k]), visible: $("show-bars").checked && !!extra.bars,
    thickness: 1, width: 0, color: marker.color });
  return {
    type: "scattergl" in Plotly && rows.length > 3000 ? "scattergl" : "scatter", mode: extra.mode || "markers", name,
    x: rows.map((c) => value(c)[x]), y: rows.map((c) => value(c)[y]), error_x: bars(x), error_y: bars(y),
    customdata: rows.map((c) => c.n), marker, text: extra.text ? rows.map((c) => plain(c.label)) : undefined,
    textposition: "top center", textfont: { size: 11, color: style("--soft") },
    hovertext: rows.map((c) => describe(c, value(c), error(c), heldout ? "held-out items" : "calibration items")),
    hoverinfo: "text",
  };
}

function drawFront() {
  const x = Number($("axis-x").value), y = Number($("axis-y").value);
  const front = data.candidates.filter((c) => c.front), rest = data.candidates.filter((c) => !c.front && !c.anchor);
  const anchors = data.candidates.filter((c) => c.anchor), seen = front.filter((c) => c.heldout);
  const accent = style("--accent");
  const traces = [
    trace("dominated", rest, x, y, false, { color: style("--soft"), size: 6, opacity: 0.3 }),
    trace("front", front, x, y, false, { color: accent, size: 10 }, { bars: true }),
    trace("anchors", anchors, x, y, false, { color: "#d97706", size: 9, symbol: "diamond" }, { mode: "markers+text", text: true }),
  ];
  if ($("show-heldout").checked && seen.length)
    traces.push(trace("front, held-out", seen, x, y, true, { color: accent, size: 10, symbol: "circle-open", line: { width: 2 } }, { bars: true }));
  Plotly.react("front", traces, layout({ xaxis: { title: { text: title(x) } }, yaxis: { title: { text: title(y) } } }), config);
}

function drawCurve() {
  const [count, hypervolume, epsilon] = data.curve;
  Plotly.react("curve", [
    { x: count, y: hypervolume, name: "hypervolume", line: { shape: "hv", color: style("--accent") } },
    { x: count, y: epsilon, name: "epsilon", yaxis: "y2", line: { shape: "hv", color: "#d97706", dash: "dot" } },
  ], layout({ xaxis: { title: { text: "candidates answered" } }, yaxis: { title: { text: "hypervolume" } },
    yaxis2: { title: { text: "epsilon" }, overlaying: "y", side: "right", showgrid: false }, hovermode: "x unified",
    margin: { l: 60, r: 60, t: 16, b: 50 } }), config);
}

function choose(n) {
  const c = data.candidates.find((one) => one.n === n);
  if (!c) return;
  for (const row of $("table").querySelectorAll("tr[data-n]")) row.classList.toggle("chosen", Number(row.dataset.n) === n);
  $("about").textContent = `${c.stage} · recipe ${c.recipe}` + (searched ? ` · ${settings(c)}` : "");
  if (!c.coefficients) { Plotly.purge("heat"); $("heat").textContent = "The coefficients of this candidate are in the ledger: mergeopt show."; return; }
  $("candidate").value = String(n);
  $("heat").textContent = "";
  const flat = c.coefficients.flat(), bound = Math.max(1e-9, ...flat.map(Math.abs)), negative = flat.some((v) => v < 0);
  $("heat").style.height = `${Math.max(260, 110 + 22 * Math.min(data.groups.length, 60))}px`;
  Plotly.newPlot("heat", [{
    type: "heatmap", z: c.coefficients, x: data.experts.map(plain), y: data.groups.map(plain), zmin: negative ? -bound : 0, zmax: bound,
    colorscale: negative ? "RdBu" : "Blues", reversescale: !negative,
    texttemplate: data.groups.length <= 40 && data.experts.length <= 12 ? "%{z:.2f}" : undefined,
    hovertemplate: "%{y}<br>%{x}: %{z:.4f}<extra></extra>", colorbar: { title: { text: "coefficient" } },
  }], layout({ xaxis: { type: "category" }, yaxis: { type: "category", autorange: "reversed" } }), config);
}

function drawParallel() {
  const rows = data.candidates.filter((c) => c.coefficients), mean = (c, k) => c.coefficients.reduce((s, g) => s + g[k], 0) / c.coefficients.length;
  const dimensions = objectives.map((o, i) => ({ label: plain(o), values: rows.map((c) => c.value[i]) }))
    .concat(data.experts.slice(0, 16).map((e, k) => ({ label: plain(e), values: rows.map((c) => mean(c, k)) })));
  Plotly.react("parallel", [{ type: "parcoords", dimensions, labelangle: dimensions.length > 8 ? -20 : 0,
    line: { color: rows.map((c) => (c.front ? 1 : 0)), colorscale: [[0, style("--line")], [1, style("--accent")]], cmin: 0, cmax: 1 } }],
  layout({ margin: { l: 60, r: 60, t: 70, b: 30 } }), config);
}

function cell(row, tag, text, small) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (small) { const s = document.createElement("small"); s.textContent = small; made.append(s); }
  row.append(made);
}

function fillTable() {
  const head = $("table").createTHead().insertRow(), body = $("table").createTBody();
  for (const text of ["candidate", ...objectives.flatMap((o) => [o, "held out"]), ...(searched ? ["options"] : [])]) cell(head, "th", text);
  for (const c of byRank.filter((one) => one.front || one.anchor)) {
    const row = body.insertRow();
    row.dataset.n = c.n; row.tabIndex = 0;
    cell(row, "td", (c.anchor ? `${c.label} (${c.n})` : c.n) + (c.front ? "" : " · dominated"));
    objectives.forEach((_, i) => {
      cell(row, "td", number(c.value[i]), plusMinus(c.stderr[i]));
      if (c.heldout) cell(row, "td", number(c.heldout[i]), plusMinus(c.heldoutStderr[i])); else cell(row, "td", "–");
    });
    if (searched) cell(row, "td", c.settings.length > 6 ? `${c.settings.length}: click` : settings(c));
    row.addEventListener("click", () => choose(c.n));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(c.n); });
  }
}

function fillFailures() {
  if (!data.failures.length) return;
  $("failures").hidden = false;
  const head = $("failure-table").createTHead().insertRow(), body = $("failure-table").createTBody();
  for (const text of ["candidate", "asked as", "reason"]) cell(head, "th", text);
  for (const f of data.failures) { const row = body.insertRow(); for (const text of [f.n, f.stage, f.reason]) cell(row, "td", text); }
}

function drawAll() { drawFront(); drawCurve(); drawParallel(); }

$("summary").textContent = `${data.answered} of ${data.evaluations} candidates answered, ${data.failed} failed · ` +
  `${data.candidates.filter((c) => c.front).length} on the front · ${objectives.length} objectives · ` +
  `${data.groups.length} groups × ${data.experts.length} experts`;
for (const [id, chosen] of [["axis-x", 0], ["axis-y", Math.min(1, objectives.length - 1)]]) {
  objectives.forEach((o, i) => $(id).add(new Option(o, i, i === chosen, i === chosen)));
  $(id).addEventListener("change", drawFront);
}
for (const id of ["show-heldout", "show-bars"]) $(id).addEventListener("change", drawFront);
for (const c of byRank.filter((one) => one.coefficients)) $("candidate").add(new Option(`${c.label}${c.front ? " · front" : ""}`, c.n));
$("candidate").addEventListener("change", (event) => choose(Number(event.target.value)));
fillTable(); fillFailures(); drawAll();
if (byRank.length) choose(byRank[0].n);
$("front").on("plotly_click", (event) => choose(event.points[0].customdata));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

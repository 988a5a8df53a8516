// Draws the report from the JSON beside it. Numbers, colours and coefficients are drawn by modules of the service's page,
// which come before this. Every text that reaches Plotly goes through plain(): it reads HTML in labels.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const objectives = data.objectives.map((o) => o.name);
const byRank = [...data.candidates].sort((a, b) => a.rank - b.rank);
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

function drawn(extra) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 13 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    margin: { l: 60, r: 20, t: 16, b: 50 }, hovermode: "closest", legend: { orientation: "h", y: 1.08 },
  };
  const merged = { ...base, ...extra };
  for (const key of ["xaxis", "yaxis", "yaxis2"]) if (extra[key]) merged[key] = { ...axis, ...extra[key] };
  return merged;
}

const goal = (i) => (data.objectives[i].goal === "max" ? "higher is better" : "lower is better");
const title = (i) => `${plain(objectives[i])} (${goal(i)})`;
const describe = (c, values, errors, where) =>
  `${plain(c.label)} · ${where}<br>${plain(c.stage)}<br>` +
  objectives.map((o, i) => `${plain(o)} ${number(values[i])}${plusMinus(errors[i])}`)
    .concat(c.settings.slice(0, 10).map(([name, value]) => `${plain(name)}: ${plain(value)}`),
      c.settings.length > 10 ? [`and ${c.settings.length - 10} more`] : []).join("<br>");
const options = (c) => c.settings.filter(([name]) => name !== "method");
const method = (c) => (c.settings.find(([name]) => name === "method") || ["", ""])[1];
const settings = (c) => c.settings.map(([name, value]) => `${name}: ${value}`).join(", ");
const methodSearched = data.candidates.some(method), searched = data.candidates.some((c) => options(c).length);
let chosen = null; // the candidate whose coefficients are shown

function trace(name, rows, x, y, heldout, marker, extra = {}) {
  const value = (c) => (heldout ? c.heldout : c.value);
  const error = (c) => (heldout ? c.heldoutStderr : c.stderr);
  const bars = (k) => ({ type: "data", array: rows.map((c) => error(c)[k]), visible: $("show-bars").checked && !!extra.bars,
    thickness: 1, width: 0, color: marker.color });
  return {
    type: "scattergl" in Plotly && rows.length > 3000 ? "scattergl" : "scatter", mode: extra.mode || "markers", name,
    x: rows.map((c) => value(c)[x]), y: rows.map((c) => value(c)[y]), error_x: bars(x), error_y: bars(y),
    customdata: rows.map((c) => c.n), marker, text: extra.labels ? rows.map((c) => extra.labels.get(c)[0]) : undefined,
    textposition: extra.labels ? rows.map((c) => extra.labels.get(c)[1]) : undefined,
    textfont: { size: 11, color: colour("--soft") },
    hovertext: rows.map((c) => describe(c, value(c), error(c), heldout ? "held-out items" : "calibration items")),
    hoverinfo: "text",
  };
}

// Where each label goes so that it touches no other and no marker of these rows; one that has no place is left to the hover.
function placed(rows, x, y) {
  const width = Math.max(200, $("front").clientWidth - 80), height = Math.max(200, $("front").clientHeight - 66);
  const scale = (k, size) => {
    const all = data.candidates.concat(data.references).flatMap((c) => (c.heldout ? [c.value[k], c.heldout[k]] : [c.value[k]]));
    const low = Math.min(...all), span = Math.max(...all) - low || 1;
    return (value) => (0.05 + 0.9 * (value - low) / span) * size;
  };
  const across = scale(x, width), up = scale(y, height), gap = 8;
  const centre = (c) => [across(c.value[x]), height - up(c.value[y])];
  const boxes = rows.map((c) => { const [a, b] = centre(c); return [a - 5, b - 5, a + 5, b + 5]; });
  const free = (box) => box[0] >= 0 && box[2] <= width && boxes.every((o) => box[2] <= o[0] || box[0] >= o[2] || box[3] <= o[1] || box[1] >= o[3]);
  const found = new Map();
  for (const c of rows) {
    const [a, b] = centre(c), w = 6.4 * c.label.length, h = 14;
    const places = { "top center": [a - w / 2, b - gap - h], "bottom center": [a - w / 2, b + gap], "middle right": [a + gap, b - h / 2],
      "middle left": [a - gap - w, b - h / 2], "top right": [a + 3, b - gap - h], "top left": [a - 3 - w, b - gap - h],
      "bottom right": [a + 3, b + gap], "bottom left": [a - 3 - w, b + gap] };
    const place = Object.keys(places).find((p) => free([...places[p], places[p][0] + w, places[p][1] + h]));
    if (place) boxes.push([...places[place], places[place][0] + w, places[place][1] + h]);
    found.set(c, [place ? plain(c.label) : "", place || "top center"]);
  }
  return found;
}

function drawFront() {
  const x = Number($("axis-x").value), y = Number($("axis-y").value);
  const front = data.candidates.filter((c) => c.front), rest = data.candidates.filter((c) => !c.front && !c.anchor);
  const anchors = data.candidates.filter((c) => c.anchor), seen = front.filter((c) => c.heldout);
  const accent = colour("--accent"), models = data.references, unseen = models.filter((c) => c.heldout);
  const swept = (c) => c.label.startsWith("global"); // steps of a sweep come last
  const labels = placed([...models, ...anchors.filter((c) => !swept(c)), ...anchors.filter(swept)], x, y);
  const traces = [
    trace("dominated", rest, x, y, false, { color: colour("--soft"), size: 6, opacity: 0.3 }),
    trace("front", front, x, y, false, { color: accent, size: 10 }, { bars: true }),
    trace("anchors", anchors, x, y, false, { color: "#d97706", size: 9, symbol: "diamond" }, { mode: "markers+text", labels }),
  ];
  if (models.length) traces.push(trace("models as they are", models, x, y, false, { color: colour("--model"), size: 10, symbol: "square" }, { mode: "markers+text", labels, bars: true }));
  if ($("show-heldout").checked && unseen.length)
    traces.push(trace("models, held-out", unseen, x, y, true, { color: colour("--model"), size: 10, symbol: "square-open", line: { width: 2 } }, { bars: true }));
  if ($("show-heldout").checked && seen.length)
    traces.push(trace("front, held-out", seen, x, y, true, { color: accent, size: 10, symbol: "circle-open", line: { width: 2 } }, { bars: true }));
  Plotly.react("front", traces, drawn({ xaxis: { title: { text: title(x) } }, yaxis: { title: { text: title(y) } } }), config);
}

function drawCurve() {
  const [count, hypervolume, epsilon] = data.curve;
  Plotly.react("curve", [
    { x: count, y: hypervolume, name: "hypervolume", line: { shape: "hv", color: colour("--accent") } },
    { x: count, y: epsilon, name: "epsilon", yaxis: "y2", line: { shape: "hv", color: "#d97706", dash: "dot" } },
  ], drawn({ xaxis: { title: { text: "candidates answered" } }, yaxis: { title: { text: "hypervolume" } },
    yaxis2: { title: { text: "epsilon" }, overlaying: "y", side: "right", showgrid: false }, hovermode: "x unified",
    margin: { l: 60, r: 60, t: 16, b: 50 } }), config);
}

function choose(n) {
  const c = data.candidates.find((one) => one.n === n);
  if (!c) return; // a model as it is
  chosen = n;
  for (const row of $("table").querySelectorAll("tr[data-n]")) row.classList.toggle("chosen", Number(row.dataset.n) === n);
  $("about").textContent = `${c.stage} · recipe ${c.recipe}` + (c.settings.length ? ` · ${settings(c)}` : "");
  if (!c.coefficients && !c.from) { Plotly.purge("heat"); $("heat").textContent = "The coefficients of this candidate are in the ledger: mergeopt show."; return; }
  $("candidate").value = String(n);
  Plotly.purge("heat");
  $("heat").textContent = "";
  if (c.from) drawOrigins($("heat"), data.groups, models, c.from);
  else drawHeat($("heat"), data.groups, data.experts, c.coefficients);
}

const models = ["base", ...data.experts];

// One axis; candidates that have no such value (null) are at its foot, on a tick of their own.
function dimension(name, values, labels) {
  const known = values.filter((v) => v !== null), low = Math.min(...known), high = Math.max(...known), span = high - low || 1;
  const foot = low - 0.15 * span, missing = known.length < values.length, made = { label: plain(name), values: values.map((v) => (v === null ? foot : v)) };
  if (!labels && !missing) return made;
  const ticks = labels ? labels.map((text, i) => [i, plain(text)]) : [...new Set([low, (low + high) / 2, high])].map((v) => [v, number(v)]);
  const shown = missing ? [[foot, "–"], ...ticks] : ticks;
  return { ...made, tickvals: shown.map(([v]) => v), ticktext: shown.map(([, text]) => text),
    range: [missing ? foot : labels ? -0.2 : low, labels ? labels.length - 0.8 : high] };
}

function drawParallel() {
  const kept = data.candidates.flatMap((c, i) => (c.coefficients || c.from ? [i] : [])), rows = kept.map((i) => data.candidates[i]);
  if (!rows.length) return;
  const mean = (c, k) => (c.coefficients ? c.coefficients.reduce((s, g) => s + g[k], 0) / c.coefficients.length : null);
  const dimensions = objectives.map((o, i) => dimension(o, rows.map((c) => c.value[i])))
    .concat(data.axes.slice(0, 10).map((a) => dimension(a.name, kept.map((i) => a.values[i]), a.labels)).filter((d) => d.values.length));
  if (rows.some((c) => c.coefficients)) dimensions.push(...data.experts.slice(0, 16).map((e, k) => dimension(e, rows.map((c) => mean(c, k)))));
  if (rows.some((c) => c.from)) dimensions.push(...data.groups.slice(0, 12).map((g, k) => dimension(g, rows.map((c) => (c.from ? c.from[k] : null)), models)));
  Plotly.react("parallel", [{ type: "parcoords", dimensions, labelangle: dimensions.length > 6 ? -20 : 0, labelside: "top",
    line: { color: rows.map((c) => (c.front ? 1 : 0)), colorscale: [[0, colour("--line")], [1, colour("--accent")]], cmin: 0, cmax: 1 } }],
  drawn({ margin: { l: 80, r: 80, t: 110, b: 30 } }), config);
}

function cell(row, tag, text, small) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (small) { const s = document.createElement("small"); s.textContent = small; made.append(s); }
  row.append(made);
}

function fillTable() {
  const head = $("table").createTHead().insertRow(), body = $("table").createTBody();
  const scores = objectives.flatMap((o) => [o, "held out"]);
  for (const text of ["candidate", ...(methodSearched ? ["method"] : []), ...scores, ...(searched ? ["options"] : [])]) cell(head, "th", text);
  for (const c of byRank.filter((one) => one.front || one.anchor).concat(data.references)) {
    const row = body.insertRow(), model = c.n === undefined;
    cell(row, "td", model ? `${c.label}, as it is` : (c.anchor ? `${c.label} (${c.n})` : c.n) + (c.front ? "" : c.feasible ? " · dominated" : " · violates a constraint"));
    if (methodSearched) cell(row, "td", method(c));
    objectives.forEach((_, i) => {
      cell(row, "td", number(c.value[i]), plusMinus(c.stderr[i]));
      if (c.heldout) cell(row, "td", number(c.heldout[i]), plusMinus(c.heldoutStderr[i])); else cell(row, "td", "–");
    });
    if (searched) cell(row, "td", options(c).length > 6 ? `${options(c).length}: click` : options(c).map(([name, value]) => `${name}: ${value}`).join(", "));
    if (model) continue; // it has no coefficients to show
    row.dataset.n = c.n; row.tabIndex = 0;
    row.addEventListener("click", () => choose(c.n));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(c.n); });
  }
}


function fillSure() {
  const head = $("sure").createTHead().insertRow(), body = $("sure").createTBody();
  for (const text of ["candidate", "seen items", "held out"]) cell(head, "th", text);
  const sureness = (c) => c.sure[0] ?? 0;
  for (const c of byRank.filter((one) => one.front).sort((a, b) => sureness(b) - sureness(a))) {
    const row = body.insertRow();
    cell(row, "td", c.anchor ? `${c.label} (${c.n})` : c.n);
    for (const p of c.sure) cell(row, "td", probability(p));
  }
  const knee = byRank.find((c) => c.n === data.knee);
  if (knee) $("knee").textContent = `Knee: candidate ${knee.n} (` +
    objectives.map((o, i) => `${o} ${number(knee.value[i])}`).join(", ") + "), furthest below the line through the front's extremes.";
  const top = $("curse").createTHead().insertRow(), gaps = $("curse").createTBody();
  for (const text of ["objective", "seen less held-out", "on seen items it looked"]) cell(top, "th", text);
  for (const g of data.curse) {
    const row = gaps.insertRow();
    cell(row, "td", g.name);
    cell(row, "td", signed(g.value), plusMinus(g.stderr));
    cell(row, "td", g.better > 0 ? "better" : g.better < 0 ? "worse" : "alike");
  }
}

function fillFailures() {
  if (!data.failures.length) return;
  $("failures").hidden = false;
  const head = $("failure-table").createTHead().insertRow(), body = $("failure-table").createTBody();
  for (const text of ["candidate", "asked as", "reason"]) cell(head, "th", text);
  for (const f of data.failures) { const row = body.insertRow(); for (const text of [f.n, f.stage, f.reason]) cell(row, "td", text); }
}

function drawAll() { drawFront(); drawCurve(); drawParallel(); choose(chosen); }

$("summary").textContent = `${data.answered} of ${data.evaluations} candidates answered, ${data.failed} failed` +
  (data.repeated ? `, ${data.repeated} more known already · ` : " · ") +
  `${data.candidates.filter((c) => c.front).length} on the front · ${objectives.length} objectives · ` +
  `${data.groups.length} groups × ${data.experts.length} experts` +
  (data.constraints.length ? ` · where ${data.constraints.join(", ")}: ${data.candidates.filter((c) => c.feasible).length} meet it` : "");
$("verdict").textContent = data.verdict || "";
for (const [id, first] of [["axis-x", 0], ["axis-y", Math.min(1, objectives.length - 1)]]) {
  objectives.forEach((o, i) => $(id).add(new Option(o, i, i === first, i === first)));
  $(id).addEventListener("change", drawFront);
}
for (const id of ["show-heldout", "show-bars"]) $(id).addEventListener("change", drawFront);
for (const c of byRank.filter((one) => one.coefficients || one.from)) $("candidate").add(new Option(`${c.label}${c.front ? " · front" : ""}`, c.n));
$("candidate").addEventListener("change", (event) => choose(Number(event.target.value)));
chosen = byRank.length ? byRank[0].n : null;
fillTable(); fillSure(); fillFailures(); drawAll();
$("front").on("plotly_click", (event) => choose(event.points[0].customdata));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

// What does each view need of the server, and what does it do there? Views draw plain data; the asking is here.
import * as api from "./api.js";
import { merged, mergedCoordinates } from "./columns.js";
import { comingPlotly } from "./plot.js";
import { candidateView } from "./views/candidate.js";
import { compareView } from "./views/compare.js";
import { newView } from "./views/new.js";
import { pickView } from "./views/pick.js";
import { runView } from "./views/run.js";
import { runsView } from "./views/runs.js";
import { startingView } from "./views/starting.js";

const OFFERED = 200; // candidates of the front that another is compared with by choosing, not typing
const NONE = { numbers: [], names: [], columns: [] };
const TOP = 8; // coordinates that travel to the parallel axes

// Do each work when something changed, at most every `least` ms and never twice at once; the slower it is, the rarer.
// `known(news)`: whether what is told at the beginning is on the page already. One stream serves all of them, and none is open while the page is hidden: a browser has few connections to a host.
function follow(path, signal, known, ...works) {
  const turns = works.map(([least, work]) => often(signal, least, work)), rung = (news) => { if (!news || !known(news)) turns.forEach((turn) => turn()); };
  let stream = null;
  const listen = () => {
    if (stream) stream.abort();
    stream = null;
    if (document.hidden || signal.aborted) return;
    stream = new AbortController();
    api.changes(path, rung, stream.signal);
  };
  const shown = () => { listen(); if (!document.hidden) rung(); };
  document.addEventListener("visibilitychange", shown);
  signal.addEventListener("abort", () => { document.removeEventListener("visibilitychange", shown); listen(); });
  listen();
}

function often(signal, least, work) {
  let pending = false, busy = false, last = 0;
  return async function turn() {
    pending = true;
    if (busy) return;
    busy = true;
    while (pending && !signal.aborted) {
      const wait = last + least - Date.now();
      if (wait > 0) await new Promise((resolve) => { setTimeout(resolve, wait); });
      pending = false;
      const start = Date.now();
      if (!signal.aborted) await work().catch(() => {}); // the next change asks again
      last = Date.now() + 2 * (Date.now() - start);
    }
    busy = false;
  };
}

const tried = (notify, work, done) => async (...given) => {
  try {
    const found = await work(...given);
    if (done) notify(done);
    return found;
  } catch (error) {
    notify(error.message);
    return null;
  }
};

export async function runs(_, { signal }) {
  const told = async () => { const [found, about] = await Promise.all([api.runs(), api.version()]); return { runs: found.runs, folder: about.runs }; };
  const view = runsView(await told(), { compare: (names) => { location.hash = `#/compare/${names.map(encodeURIComponent).join(",")}`; } });
  follow("events", signal, () => false, [1500, async () => view.update(await told())]);
  return view;
}

// What the process said that was started here, and a line for each answer.
const logged = (found) => [...found.process || [], ...found.lines];

// The coordinates of candidates that are new; which ones matter is asked apart, and takes longer.
async function later(name, before) {
  const { names, event } = before;
  return names.length && !names.some((n) => n.includes(",")) ? mergedCoordinates(before, await api.coordinates(name, { names: names.join(","), since: event })) : before;
}

// What a run's view draws, asked for at once; at first without what takes the server longer.
async function whole(name, log, before) {
  const [run, news, curve, coordinates] = await Promise.all([api.run(name), api.candidates(name, { since: before && before.table.event }), before ? api.curve(name) : null, before ? later(name, before.coordinates) : NONE]);
  const table = before ? merged(before.table, news) : news;
  return { run, table, curve, log, coordinates, importance: before ? before.importance : null };
}

export async function run([name], { signal, notify }) {
  comingPlotly();
  const said = await api.log(name), early = said.lines.length ? null : await starting(name, signal); // the one answer that there is of both
  if (early) return early;
  let data = await whole(name, logged(said)), metric = "";
  // What takes the server longest comes last: which coordinates matter, and their values.
  const weigh = async () => {
    const importance = await api.importance(name, metric).catch((error) => error.message);
    data = { ...data, importance };
    if (!signal.aborted) view.importance(importance);
  };
  const coordinates = async () => {
    const found = await api.coordinates(name, { top: TOP });
    data = { ...data, coordinates: found };
    if (!signal.aborted) view.coordinates(data);
  };
  let fresh = true;
  const known = (news) => { const same = fresh && news.event === data.table.event && news.status === data.run.status; fresh = false; return same; };
  const refresh = async () => { data = await whole(name, await api.log(name).then(logged), data); view.update(data); };
  const act = (work, done) => tried(notify, async (...given) => { await work(...given); await refresh(); }, done);
  const view = runView(data, {
    metric: (chosen) => { metric = chosen; view.importance(null); weigh(); },
    stop: act(() => api.stop(name), "It stops after what is being scored."), cancel: act(() => api.cancel(name), "It ends now."), resume: act((more) => api.resume(name, more), "It goes on."),
    download: tried(notify, async (kind) => save(await api.table(name, kind), `${name}.${kind}`)),
  });
  api.curve(name).then((curve) => { data = { ...data, curve }; if (!signal.aborted) view.curve(data); }).catch(() => {});
  weigh();
  coordinates().catch(() => {});
  follow(`runs/${encodeURIComponent(name)}/events`, signal, known, [1500, refresh], [15000, async () => { await coordinates(); await weigh(); }]);
  return view;
}

// A search that was started, and is no run yet: what is known of it, until it is one or has failed.
async function starting(name, signal) {
  const told = async () => {
    const line = (await api.runs()).runs.find((r) => r.name === name);
    if (!line || !["starting", "failed"].includes(line.status)) return null;
    return { run: line, log: await api.log(name).then(logged).catch(() => []) };
  };
  const first = await told();
  if (!first) return null;
  const view = startingView(first);
  follow(`runs/${encodeURIComponent(name)}/events`, signal, () => false, [500, async () => {
    const now = await told();
    if (now) view.update(now); else if (!signal.aborted) dispatchEvent(new Event("hashchange")); // it is a run
  }]);
  return view;
}

function save(blob, as) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: as });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export async function candidate([name, pick], { signal, notify }) {
  comingPlotly();
  const lines = api.log(name, 60).then(logged).catch(() => []);
  const [found, about, front, anchors, log] = await Promise.all([api.candidate(name, pick), api.run(name), api.candidates(name, { front: 1, order: "mean", limit: OFFERED }), api.candidates(name, { stage: "anchors" }), lines]);
  const offered = new Map([...anchors.numbers.map((n) => [n, `${anchors.labels[n]} (${n})`]), ...about.references.map((r) => [r.label, `${r.label}, as it is`]), ...front.numbers.map((n) => [n, front.labels[n] ? `${front.labels[n]} (${n})` : `${n}, on the front`])]);
  const me = found.number === null ? found.label : String(found.number); // a model as it is has no number
  const others = [...offered].filter(([n]) => n !== found.number && n !== found.label);
  const view = candidateView({ run: about, candidate: found, others, compared: null, exported: null, log }, {
    compare: async (other) => view.compared(other === "" ? null : await against(other)),
    export: tried(notify, async (as) => {
      try { const { id } = await api.startExport(name, me, as); await exported(id); } catch (error) { view.exported({ error: error.message }); }
    }),
  });
  const against = tried(notify, async (other) => ({ pick: other, found: await api.compare(name, me, String(other)) }));
  async function exported(id) {
    for (let state = { state: "queued" }; !signal.aborted && !["done", "failed"].includes(state.state);) {
      state = await api.exportState(id);
      view.exported(state);
      await new Promise((resolve) => { setTimeout(resolve, 700); });
    }
  }
  return view;
}

export async function pick([name]) {
  comingPlotly();
  const [about, table] = await Promise.all([api.run(name), api.candidates(name)]);
  return pickView({ run: about, table });
}

export async function compare([list]) {
  const names = list.split(",").filter(Boolean);
  comingPlotly();
  try {
    return compareView({ names, ...await api.fronts(names) });
  } catch (error) {
    if (error.status !== 409) throw error;
    return compareView({ names, refused: error.message });
  }
}

export async function fresh(_, { query }) {
  const from = query.get("run"), start = query.get("start");
  const yaml = from ? await api.job(from, start) : null;
  const told = from ? `The job of ${from}${start ? `, beginning at its candidate ${start}: at each expert's mean coefficient, which is all that a job's start can say` : ""}.` : null;
  return newView({ yaml, from: told, name: from ? `${from}-2` : "" }, { draft: api.draftJob, check: api.checkJob, launch: api.launch });
}


// What does each view of a run need? Views draw plain data; the asking is here.
// source: who answers. api.js asks a server, kept.js has the answers in the file; both have run, candidates,
// coordinates, importance, candidate, compare and curve, the last argument of each the signal of the view that asks.
// does: what a server does beside (serving.js), or null.
import { merged, mergedCoordinates } from "./columns.js";
import { comingPlotly } from "./plot.js";
import { candidateView } from "./views/candidate.js";
import { pickView } from "./views/pick.js";
import { runView } from "./views/run.js";

const OFFERED = 200; // candidates of the front that another is compared with by choosing, not typing
const NONE = { numbers: [], names: [], columns: [] };
const LINES = 200; // of the log that a run's view shows
const SHORT = 60; // and that a candidate's does
const TOP = 8; // coordinates that travel to the parallel axes

export function pagesOf(source, does) {
  // The coordinates of candidates that are new; which ones matter is asked apart, and takes longer.
  async function later(name, before, signal) {
    const { names, event } = before;
    return names.length && !names.some((n) => n.includes(","))
      ? mergedCoordinates(before, await source.coordinates(name, { names: names.join(","), since: event }, signal))
      : before;
  }

  // What a run's view draws at first: without what takes a server longer.
  async function begun(name, log, signal) {
    const [run, table] = await Promise.all([source.run(name, signal), source.candidates(name, {}, signal)]);
    return { run, table, curve: null, log, coordinates: NONE, importance: null };
  }

  // What is new since `before`, as what makes it of the data of then: other answers may have come meanwhile.
  async function renewed(name, before, signal) {
    const [run, news, curve, coordinates, log] = await Promise.all([
      source.run(name, signal),
      source.candidates(name, { since: before.table.event }, signal),
      source.curve(name, signal),
      later(name, before.coordinates, signal),
      does.log(name, LINES, signal),
    ]);
    return (now) =>
      news.event < now.table.event
        ? now
        : {
            ...now,
            run,
            curve,
            log,
            table: merged(now.table, news),
            coordinates: now.coordinates === before.coordinates ? coordinates : now.coordinates,
          };
  }

  async function run([name], { signal, notify }) {
    comingPlotly();
    const { early, log } = does ? await does.begun(name, LINES, signal, notify) : { early: null, log: null };
    if (early) return early;
    let data = await begun(name, log, signal),
      metric = "";
    signal.throwIfAborted(); // nothing more is asked for a view that was left
    // What takes a server longest comes last: which coordinates matter, and their values.
    const weigh = async () => {
      const asked = metric,
        importance = await source.importance(name, asked, signal).catch((error) => error.message);
      if (asked !== metric) return; // another was chosen meanwhile
      data = { ...data, importance };
      if (!signal.aborted) view.importance(importance);
    };
    const coordinates = async () => {
      const left = () => view.brushed().filter((n) => data.coordinates.names.includes(n) && !found.names.includes(n));
      let found = await source.coordinates(name, { top: TOP }, signal);
      const names = [...found.names, ...left()]; // a coordinate that is brushed stays, whatever matters more by now
      if (left().length && !names.some((n) => n.includes(",")))
        found = await source.coordinates(name, { names: names.join(",") }, signal);
      if (left().length) return; // brushed meanwhile, or it cannot be asked for: the axes are left as they are
      data = { ...data, coordinates: found };
      if (!signal.aborted) view.coordinates(data);
    };
    let fresh = true;
    const known = (news) => {
      const same = fresh && news.event === data.table.event && news.status === data.run.status;
      fresh = false;
      return same;
    };
    const refresh = async () => {
      const make = await renewed(name, data, signal);
      if (signal.aborted) return;
      data = make(data);
      view.update(data);
    };
    const view = runView(data, {
      metric: (chosen) => {
        metric = chosen;
        data = { ...data, importance: null };
        view.importance(null);
        weigh();
      },
      ...(does ? does.acts(name, notify, refresh, signal) : {}),
    });
    source
      .curve(name, signal)
      .then((curve) => {
        if (data.curve) return;
        data = { ...data, curve };
        if (!signal.aborted) view.curve(data);
      })
      .catch(() => {});
    weigh();
    coordinates().catch(() => {});
    if (does)
      does.follow(
        name,
        signal,
        known,
        [1500, refresh],
        [
          15000,
          async () => {
            await coordinates();
            await weigh();
          },
        ],
      );
    return view;
  }

  async function candidate([name, pick], { signal, notify }) {
    comingPlotly();
    const lines = does ? does.log(name, SHORT, signal).catch(() => []) : null;
    const [found, about, front, anchors, log] = await Promise.all([
      source.candidate(name, pick, signal),
      source.run(name, signal),
      source.candidates(name, { front: 1, order: "mean", limit: OFFERED }, signal),
      source.candidates(name, { stage: "anchors" }, signal),
      lines,
    ]);
    const offered = new Map([
      ...anchors.numbers.map((n) => [n, `${anchors.labels[n]} (${n})`]),
      ...about.references.map((r) => [r.label, `${r.label}, as it is`]),
      ...front.numbers.map((n) => [n, front.labels[n] ? `${front.labels[n]} (${n})` : `${n}, on the front`]),
    ]);
    const me = found.number === null ? found.label : String(found.number); // a model as it is has no number
    const others = [...offered].filter(([n]) => n !== found.number && n !== found.label);
    let turn = 0;
    const against = async (other) => {
      const mine = ++turn,
        now = () => mine === turn && !signal.aborted; // else another was chosen meanwhile
      try {
        const apart = other === "" ? null : await source.compare(name, me, String(other), signal);
        if (now()) view.compared(apart);
      } catch (error) {
        if (!now()) return;
        notify(error.message);
        view.compared(null);
      }
    };
    const view = candidateView(
      { run: about, candidate: found, others, log },
      {
        compare: against,
        ...(does ? { export: (as) => does.take(name, me, as, signal, (state) => view.exported(state)) } : {}),
      },
    );
    return view;
  }

  async function pick([name], { signal }) {
    comingPlotly();
    const [about, table] = await Promise.all([source.run(name, signal), source.candidates(name, {}, signal)]);
    return pickView({ run: about, table, serves: !!does });
  }

  return { run, candidate, pick };
}

// What does a server do beside answering? Runs of a folder, searches to start and stop, merges to take, and news.
import * as api from "./api.js";
import { follow } from "./follow.js";
import { comingPlotly } from "./plot.js";
import { compareView } from "./views/compare.js";
import { newView } from "./views/new.js";
import { runsView } from "./views/runs.js";
import { startingView } from "./views/starting.js";

const tried =
  (notify, work, done) =>
  async (...given) => {
    try {
      const found = await work(...given);
      if (done) notify(done);
      return found;
    } catch (error) {
      notify(error.message);
      return null;
    }
  };

// What the process said that was started here, and a line for each answer.
const logged = (found) => [...(found.process || []), ...found.lines];
const log = (name, tail, signal) => api.log(name, tail, signal).then(logged);

// What views of a run offer where there is a server (pages.js).
export const does = {
  tried,
  log,
  follow: (name, signal, known, ...works) => follow(`runs/${encodeURIComponent(name)}/events`, signal, known, ...works),
  // The view of what is no run yet, or null; and the log, the one answer that there is of both.
  async begun(name, tail, signal, notify) {
    const said = await api.log(name, tail, signal);
    return { early: said.lines.length ? null : await starting(name, tail, signal, notify), log: logged(said) };
  },
  // after: what shows the change, if the view is not left
  acts: (name, notify, after, signal) => {
    const act = (work, done) =>
      tried(
        notify,
        async (...given) => {
          await work(...given);
          await after().catch((error) => {
            if (!signal.aborted) throw error;
          });
        },
        done,
      );
    return {
      stop: act(() => api.stop(name), "It stops after what is being scored."),
      cancel: act(() => api.cancel(name), "It ends now."),
      resume: act((more) => api.resume(name, more), "It goes on."),
      download: tried(notify, async (kind) => save(await api.table(name, kind), `${name}.${kind}`)),
    };
  },
  // Write a merge, and tell each state of it.
  async take(name, chosen, as, signal, tell) {
    try {
      const { id } = await api.startExport(name, chosen, as);
      for (let state = { state: "queued" }; !signal.aborted && !["done", "failed"].includes(state.state);) {
        state = await api.exportState(id, signal);
        tell(state);
        await new Promise((resolve) => {
          setTimeout(resolve, 700);
        });
      }
    } catch (error) {
      if (!signal.aborted) tell({ error: error.message });
    }
  },
};

export async function runs(_, { signal }) {
  const [first, about] = await Promise.all([api.runs(signal), api.version(signal)]);
  const view = runsView(first.runs, about.runs, {
    compare: (names) => {
      location.hash = `#/compare/${names.map(encodeURIComponent).join(",")}`;
    },
  });
  follow("events", signal, () => false, [1500, async () => view.update((await api.runs(signal)).runs)]);
  return view;
}

// A search that was started, and is no run yet: what is known of it, until it is one or has failed.
async function starting(name, tail, signal, notify) {
  const told = async () => {
    const line = (await api.runs(signal)).runs.find((r) => r.name === name);
    if (!line) return undefined;
    if (!["starting", "failed"].includes(line.status)) return null;
    return { run: line, log: await log(name, tail, signal).catch(() => []) };
  };
  const first = await told();
  if (!first) return null;
  const look = async () => {
    const now = await told();
    if (signal.aborted) return;
    if (now) view.update(now);
    else if (now === undefined) location.hash = "#/"; // it was forgotten
    else dispatchEvent(new Event("hashchange")); // it is a run
  };
  const given = async (work, done) => {
    if (await tried(notify, work, done)()) await look().catch(() => {}); // the next change asks again
  };
  const view = startingView(first, {
    cancel: () => given(() => api.cancel(name), "It has ended."),
    forget: () => given(() => api.cancel(name), "It is forgotten; its name is free."),
    resume: () => given(() => api.resume(name, null), "It goes on."),
  });
  does.follow(name, signal, () => false, [500, look]);
  return view;
}

function save(blob, as) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: as });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export async function compare([list], { signal }) {
  const names = list.split(",").filter(Boolean);
  comingPlotly();
  try {
    return compareView({ names, ...(await api.fronts(names, signal)) });
  } catch (error) {
    if (error.status !== 409) throw error;
    return compareView({ names, refused: error.message });
  }
}

// Whether a run has the name: what never became one has none.
const taken = async (name, signal) =>
  (await api.runs(signal)).runs.some((r) => r.name === name && (r.status !== "failed" || r.evaluations > 0));

export async function fresh(_, { query, signal }) {
  const from = query.get("run"),
    start = query.get("start");
  const yaml = from ? await api.job(from, start, signal) : null;
  const told = from
    ? `The job of ${from}${start ? `, beginning at the coefficients of its candidate ${start}` : ""}.`
    : null;
  return newView(
    { yaml, from: told, name: from ? (await taken(from, signal) ? `${from}-2` : from) : "" },
    { draft: api.draftJob, check: api.checkJob, launch: api.launch },
  );
}

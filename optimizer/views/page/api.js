// What does the server say? One function a question; errors carry its sentence. Changes are heard as they come.
import { Told } from "./told.js";

const KEY = "mergeopt-token";

// The token comes in the address's fragment, which is never sent; it stays with this tab.
export function takeToken() {
  const found = /^#token=([^&]+)(?:&(.*))?$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  history.replaceState(null, "", `${location.pathname}#${found[2] || "/"}`);
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;
const bearer = () => (hasToken() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {});

async function ask(method, path, { body, signal, type = "json" } = {}) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, {
      method,
      signal,
      headers: { ...bearer(), ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told(0, "the service does not answer; is mergeopt serve still running?");
  }
  if (!answer.ok) throw new Told(answer.status, await sentence(answer));
  return type === "json" ? answer.json() : type === "text" ? answer.text() : answer.blob();
}

async function sentence(answer) {
  if (answer.status === 401) return "this needs the token: open the address that mergeopt serve printed, it carries it";
  try {
    const said = (await answer.json()).error;
    if (said) return String(said);
  } catch {
    /* not JSON: the status has to do */
  }
  return `the service answered ${answer.status}`;
}

const name = encodeURIComponent;
const query = (given) => {
  const kept = Object.entries(given).filter(([, v]) => v !== null && v !== undefined && v !== "");
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
};

// signal: of the view that asks; once that is left its questions are dropped, with an AbortError.
const get = (path, signal, type) => ask("GET", path, { signal, type });

export const version = (signal) => get("version", signal);
export const runs = (signal) => get("runs", signal);
export const run = (r, signal) => get(`runs/${name(r)}`, signal);
export const candidates = (r, how, signal) => get(`runs/${name(r)}/candidates${query(how)}`, signal);
export const coordinates = (r, how, signal) => get(`runs/${name(r)}/coordinates${query(how)}`, signal);
export const importance = (r, metric, signal) => get(`runs/${name(r)}/importance${query({ metric })}`, signal);
export const candidate = (r, pick, signal) => get(`runs/${name(r)}/candidates/${name(pick)}`, signal);
export const compare = (r, a, b, signal) => get(`runs/${name(r)}/compare${query({ a, b })}`, signal);
export const curve = (r, signal) => get(`runs/${name(r)}/curve`, signal);
export const log = (r, tail, signal) => get(`runs/${name(r)}/log${query({ tail })}`, signal);
export const fronts = (names, signal) => get(`compare${query({ runs: names.join(",") })}`, signal);
export const job = (r, start, signal) => get(`runs/${name(r)}/job${query({ start, short: 1 })}`, signal, "text");
export const table = (r, kind) => ask("GET", `runs/${name(r)}/table.${kind}`, { type: "blob" });
export const checkJob = (yaml) => ask("POST", "jobs/check", { body: { yaml } });
export const draftJob = (given) => ask("POST", "jobs/draft", { body: given });
export const launch = (given) => ask("POST", "jobs", { body: given });
export const stop = (r) => ask("POST", `runs/${name(r)}/stop`);
export const cancel = (r) => ask("POST", `runs/${name(r)}/cancel`);
export const resume = (r, evaluations) =>
  ask("POST", `runs/${name(r)}/resume`, { body: evaluations ? { evaluations } : {} });
export const startExport = (r, chosen, as) =>
  ask("POST", `runs/${name(r)}/exports`, { body: as ? { candidate: chosen, name: as } : { candidate: chosen } });
export const exportState = (id, signal) => get(`exports/${name(id)}`, signal);

// Hear of changes until `signal` aborts; after a break it asks again, later each time. A stream by fetch: it can carry
// the token.
export async function changes(path, heard, signal) {
  for (let wait = 1000; !signal.aborted; wait = Math.min(30000, wait * 2)) {
    try {
      const answer = await fetch(`/api/${path}`, { signal, headers: { ...bearer(), Accept: "text/event-stream" } });
      if (!answer.ok) throw new Told(answer.status, "no events");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { done, value } = await reader.read();
        if (done) break;
        wait = 1000;
        const blocks = (rest + value.replace(/\r/g, "")).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) read(block, heard);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Told && [401, 403, 404].includes(error.status)) return;
    }
    await new Promise((resolve) => {
      setTimeout(resolve, wait);
    });
  }
}

function read(block, heard) {
  const data = block
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trim())
    .join("\n");
  if (!data) return; // a heartbeat
  try {
    heard(JSON.parse(data));
  } catch {
    /* half an event is none */
  }
}

// How does a view keep up? Its works are done when something changed, and none too often.
import { changes } from "./api.js";

// Do each work when something changed, at most every `least` ms and never twice at once; the slower it is, the rarer.
// `known(news)`: whether what is told at the beginning is on the page already. One stream serves all of them, and none
// is open while the page is hidden: a browser has few connections to a host.
export function follow(path, signal, known, ...works) {
  const turns = works.map(([least, work]) => often(signal, least, work)),
    rung = (news) => {
      if (!news || !known(news)) turns.forEach((turn) => turn());
    };
  if (signal.aborted) return;
  let stream = null;
  const listen = () => {
    if (stream) stream.abort();
    stream = null;
    if (document.hidden || signal.aborted) return;
    stream = new AbortController();
    changes(path, rung, stream.signal);
  };
  const shown = () => {
    listen();
    if (!document.hidden) rung();
  };
  document.addEventListener("visibilitychange", shown, { signal });
  signal.addEventListener("abort", listen);
  listen();
}

function often(signal, least, work) {
  let pending = false,
    busy = false,
    last = 0;
  return async function turn() {
    pending = true;
    if (busy) return;
    busy = true;
    while (pending && !signal.aborted) {
      const wait = last + least - Date.now();
      if (wait > 0)
        await new Promise((resolve) => {
          setTimeout(resolve, wait);
        });
      pending = false;
      const start = Date.now();
      if (!signal.aborted) await work().catch(() => {}); // the next change asks again
      last = Date.now() + 2 * (Date.now() - start);
    }
    busy = false;
  };
}

// Which view does the address ask for, and what is around it?
import * as api from "./api.js";
import { el } from "./dom.js";
import * as pages from "./pages.js";
import { themeSwitch } from "./theme.js";

const main = document.getElementById("main"), said = document.getElementById("said");
let view = null, leaving = new AbortController();

// [pattern of the path, page, title of the window]
const ROUTES = [
  [/^\/?$/, pages.runs, () => "Runs"],
  [/^\/run\/([^/]+)$/, pages.run, (name) => name],
  [/^\/run\/([^/]+)\/c\/([^/]+)$/, pages.candidate, (name, pick) => `${pick} · ${name}`],
  [/^\/run\/([^/]+)\/pick$/, pages.pick, (name) => `Pick · ${name}`],
  [/^\/compare\/(.+)$/, pages.compare, () => "Compare runs"],
  [/^\/new$/, pages.fresh, () => "New search"],
];

// Say something at the foot of the page for a while.
let quiet = 0;
export function notify(text) {
  said.textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { said.textContent = ""; }, 6000);
}

async function go(focus) {
  leaving.abort();
  const mine = leaving = new AbortController(), [path, search] = location.hash.replace(/^#/, "").split("?");
  const found = ROUTES.map(([pattern, page, title]) => [pattern.exec(path), page, title]).find(([match]) => match);
  if (!found) return fail(new api.ApiError(404, "there is no such view; go back to Runs"));
  let parts;
  try { parts = found[0].slice(1).map(decodeURIComponent); } catch { return fail(new api.ApiError(404, "this address is not readable; go back to Runs")); }
  document.title = `${found[2](...parts)} · mergeopt`;
  for (const link of document.querySelectorAll("header nav a")) link.toggleAttribute("aria-current", link.getAttribute("href") === `#${path || "/"}`);
  main.setAttribute("aria-busy", "true");
  try {
    const made = await found[1](parts, { signal: mine.signal, notify, query: new URLSearchParams(search || "") });
    if (mine.signal.aborted) return made.dispose && made.dispose();
    show(made, focus);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  }
  return null;
}

function show(made, focus) {
  if (view && view.dispose) view.dispose();
  view = made;
  main.replaceChildren(made.node);
  main.removeAttribute("aria-busy");
  if (focus) { scrollTo(0, 0); main.focus({ preventScroll: true }); }
  if (made.draw) made.draw();
}

function fail(error) {
  if (!(error instanceof api.ApiError)) console.error(error); // ours, not the service's
  show({ node: el("div", {}, el("h1", {}, "That did not work"), el("p", { class: "notice bad" }, error.message), el("p", {}, el("a", { href: "#/" }, "All runs"))) }, true);
}

api.takeToken();
themeSwitch(document.getElementById("theme"), () => { if (view && view.draw) view.draw(); });
addEventListener("hashchange", () => { if (location.hash.startsWith("#main")) return; api.takeToken(); go(true); });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
api.version().then((v) => {
  document.getElementById("mode").textContent = api.hasToken() && !v.read_only ? "" : "read-only";
  document.getElementById("mode").title = api.hasToken() && !v.read_only ? "" : "To change anything, open the address that mergeopt serve printed: it carries the token";
}).catch(() => {});
go(false);

// What does the service's page show? Every view, of what a server says.
import * as api from "./api.js";
import { start } from "./app.js";
import { pagesOf } from "./pages.js";
import * as serving from "./serving.js";

const pages = pagesOf(api, serving.does);

start(
  [
    [/^\/?$/, serving.runs, () => "Runs"],
    [/^\/run\/([^/]+)$/, pages.run, (name) => name],
    [/^\/run\/([^/]+)\/c\/([^/]+)$/, pages.candidate, (name, pick) => `${pick} · ${name}`],
    [/^\/run\/([^/]+)\/pick$/, pages.pick, (name) => `Pick · ${name}`],
    [/^\/compare\/(.+)$/, serving.compare, () => "Compare runs"],
    [/^\/new$/, serving.fresh, () => "New search"],
  ],
  api.takeToken,
);

api
  .version()
  .then((v) => {
    const mode = document.getElementById("mode"),
      reads = !api.hasToken() || v.read_only;
    mode.textContent = reads ? "read-only" : "";
    mode.title = reads ? "To change anything, open the address that mergeopt serve printed: it carries the token" : "";
  })
  .catch(() => {});

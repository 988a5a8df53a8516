// What does a report show? The views of one run, of what is in the file itself.
import { start } from "./app.js";
import { keptSource } from "./kept.js";
import { pagesOf } from "./pages.js";
import { plotlyFrom } from "./plot.js";

const data = JSON.parse(document.getElementById("data").textContent),
  pages = pagesOf(keptSource(data), null),
  name = data.run.name;

// The drawing library is the last of the file: what needs no figure is seen before it is read.
plotlyFrom(
  () =>
    new Promise((resolve) => {
      if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve, { once: true });
      else resolve();
    }),
);
start([
  [/^\/?$/, (_, given) => pages.run([name], given), () => name],
  [/^\/run\/([^/]+)$/, pages.run, () => name],
  [/^\/run\/([^/]+)\/c\/([^/]+)$/, pages.candidate, (_, pick) => `${pick} · ${name}`],
  [/^\/run\/([^/]+)\/pick$/, pages.pick, () => `Pick · ${name}`],
]);

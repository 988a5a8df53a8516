// Which view does the address ask for, and what is around it?
import { el } from "./dom.js";
import { themeSwitch } from "./theme.js";
import { explainWords } from "./tips.js";
import { Told } from "./told.js";

// routes: [[pattern of the path, page, title of the window]]; a page gives {node, draw, dispose}. before() runs at
// each address.
export function start(routes, before = () => {}) {
  const main = document.getElementById("main"),
    said = document.getElementById("said"),
    home = said.dataset.home || "All runs";
  let view = null,
    leaving = new AbortController(),
    quiet = 0;

  // Say something at the foot of the page for a while.
  function notify(text) {
    said.textContent = text;
    clearTimeout(quiet);
    quiet = setTimeout(() => {
      said.textContent = "";
    }, 6000);
  }

  async function go(focus) {
    leaving.abort();
    const mine = (leaving = new AbortController()),
      [path, search] = location.hash.replace(/^#/, "").split("?");
    const found = routes.map(([pattern, page, title]) => [pattern.exec(path), page, title]).find(([match]) => match);
    if (!found) return fail(new Told(404, `there is no such view; go back to ${home}`));
    let parts;
    try {
      parts = found[0].slice(1).map(decodeURIComponent);
    } catch {
      return fail(new Told(404, `this address is not readable; go back to ${home}`));
    }
    document.title = `${found[2](...parts)} · mergeopt`;
    for (const link of document.querySelectorAll("header nav a"))
      link.toggleAttribute("aria-current", link.getAttribute("href") === `#${path || "/"}`);
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
    if (focus) {
      scrollTo(0, 0);
      main.focus({ preventScroll: true });
    }
    if (made.draw) made.draw();
  }

  function fail(error) {
    if (!(error instanceof Told)) console.error(error); // ours, not the service's
    show(
      {
        node: el(
          "div",
          {},
          el("h1", {}, "That did not work"),
          el("p", { class: "notice bad" }, error.message),
          el("p", {}, el("a", { href: "#/" }, home)),
        ),
      },
      true,
    );
  }

  const redraw = () => {
    if (view && view.draw) view.draw();
  };
  before();
  explainWords();
  themeSwitch(document.getElementById("theme"), redraw);
  matchMedia("print").addEventListener("change", redraw); // paper is light, whatever the screen is
  addEventListener("hashchange", () => {
    if (location.hash.startsWith("#main")) return;
    before();
    go(true);
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  go(false);
}

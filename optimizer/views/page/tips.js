// How is it shown what a word means? Beside it, to who points at it, tabs to it or taps it; Escape takes it away.
import { el } from "./dom.js";
import { idOf, WORDS } from "./glossary.js";

const EDGE = 12; // pixels left free at the sides

// Once a page: whatever is drawn later is heard too.
export function explainWords() {
  const tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" }),
    said = Object.entries(WORDS).map(([word, text]) => el("p", { id: idOf(word) }, text));
  document.body.append(el("div", { hidden: true }, said), tip); // hidden is read where something is described by it
  let by = null;

  function hide() {
    by = null;
    tip.hidden = true;
  }

  function show(node) {
    by = node;
    tip.textContent = WORDS[node.dataset.word];
    tip.hidden = false;
    place();
  }

  // Touching the word, so that the pointer can go over to it.
  function place() {
    if (!by || !by.isConnected) return hide();
    const word = by.getBoundingClientRect(),
      below = word.bottom + tip.offsetHeight <= innerHeight;
    tip.style.left = `${Math.max(EDGE, Math.min(word.left, innerWidth - EDGE - tip.offsetWidth))}px`;
    tip.style.top = `${below ? word.bottom : word.top - tip.offsetHeight}px`;
    return null;
  }

  const wordOf = (target) => (target instanceof Element ? target.closest("[data-word]") : null);
  const at = (event) => {
    const word = wordOf(event.target);
    if (word) show(word);
    else if (!tip.contains(event.target)) hide();
  };
  document.addEventListener("focusin", at);
  document.addEventListener("click", at);
  document.addEventListener("pointerover", (event) => {
    // who came by the keyboard goes on by it; a click, to sort by a column, leaves nothing lying on the rows
    if (event.pointerType === "mouse" && (wordOf(event.target) || !by?.matches(":focus-visible"))) at(event);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  for (const moved of ["scroll", "resize"]) addEventListener(moved, place, { capture: true, passive: true });
  addEventListener("hashchange", hide);
}

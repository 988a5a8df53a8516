// Light or dark? As the system says, until the switch says otherwise.

const KEY = "mergeopt-theme",
  NEXT = { auto: "light", light: "dark", dark: "auto" };

export function themeSwitch(button, changed) {
  let now = remembered();
  if (!(now in NEXT)) now = "auto";

  function set(theme, tell) {
    now = theme;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    remember(theme);
    button.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
    button.title = `Theme: ${theme}`;
    button.setAttribute("aria-label", `Theme: ${theme}; switch to ${NEXT[theme]}`);
    if (tell) changed();
  }

  set(now, false);
  button.addEventListener("click", () => set(NEXT[now], true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

// A file that somebody sent may be given no storage: then the switch holds until it is closed.
function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
function remember(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    /* nowhere to keep it */
  }
}

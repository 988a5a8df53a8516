// How is a number said? In as many digits as it deserves; what is not known is a dash.

export function number(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x),
    text = size !== 0 && size < 0.0005 ? x.toExponential(1) : size >= 100 ? x.toFixed(1) : x.toFixed(3);
  return text.replace(/^-/, "−");
}

export const plusMinus = (x) => (x === null || x === undefined ? "" : ` ± ${number(x)}`); // null: not known
export const APART = 1.96; // standard errors: less than that from 0 may be noise, 95 times in 100
// Whether a difference may well be none, by its standard error (null: not known).
export const untold = (value, stderr) =>
  stderr !== null && stderr !== undefined && value !== 0 && Math.abs(value) < APART * stderr;
export const percent = (share) => `${Math.round(100 * share)} %`;
export const probability = (p) =>
  p === null || p === undefined ? "–" : p < 0.01 ? "<.01" : p > 0.99 ? ">.99" : p.toFixed(2);
export const signed = (x) => (x === null || x === undefined ? "–" : (x >= 0 ? "+" : "−") + number(Math.abs(x)));
export const whole = (n) => (n === null || n === undefined ? "–" : Number(n).toLocaleString("en"));
export const cut = (text, length) =>
  String(text).length > length ? `${String(text).slice(0, length - 1)}…` : String(text);

// Names without what they all begin with, up to a dot or slash: what is left tells them apart where room is short.
export function unshared(names) {
  const first = names[0] ?? "";
  let same = names.length > 1 ? first.length : 0;
  for (const name of names) while (!name.startsWith(first.slice(0, same))) same -= 1;
  const from = Math.max(first.lastIndexOf(".", same - 1), first.lastIndexOf("/", same - 1)) + 1;
  return from > 3 && names.every((name) => name.length > from)
    ? names.map((name) => `…${name.slice(from)}`)
    : [...names];
}

export function bytes(n) {
  const step = Math.min(4, n > 0 ? Math.floor(Math.log10(n) / 3) : 0);
  return `${step ? (n / 1000 ** step).toPrecision(3) : n} ${["B", "kB", "MB", "GB", "TB"][step]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return seconds > 0 ? "under 1 ms" : "0 s";
  if (seconds < 1) return seconds ? `${Math.max(1, Math.round(seconds * 1000))} ms` : "0 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

// `at`: seconds since 1970, or ISO text
export function ago(at, now = Date.now()) {
  if (at === null || at === undefined) return "–";
  const seconds = (now - (typeof at === "number" ? at * 1000 : Date.parse(at))) / 1000;
  return Number.isNaN(seconds) ? "–" : seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

// spent: {hours, gpu_hours, money}, any of them null
export function spentText(spent) {
  if (!spent) return "–";
  const said = [];
  if (spent.hours) said.push(duration(spent.hours * 3600));
  if (spent.gpu_hours) said.push(`${spent.gpu_hours.toFixed(1)} GPU h`);
  if (spent.money) said.push(`${spent.money.toFixed(2)} spent`);
  return said.join(" · ") || "–";
}

// A word of a command line, whatever is in it.
export const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${String(text).replace(/'/g, "'\\''")}'`);

export const better = (goal) => (goal === "max" ? "higher is better" : "lower is better");

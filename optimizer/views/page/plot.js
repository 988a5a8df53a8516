// How is a figure drawn? By Plotly, in the page's colours. Every text that reaches it goes through plain(): it reads
// HTML. (No tag but <br> in them: others become style attributes, which the policy forbids.)

export const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
export const STAGES = ["--accent", "--amber", "--model", "--plum", "--teal", "--rose", "--olive", "--soft"];

// A colour of the style sheet as rgb(), which is all that Plotly reads.
export function colour(name) {
  const probe =
    document.getElementById("probe") ||
    document.body.appendChild(Object.assign(document.createElement("i"), { id: "probe", hidden: true }));
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

export function layout(extra) {
  const axis = {
    gridcolor: colour("--line"),
    zerolinecolor: colour("--line"),
    linecolor: colour("--line"),
    automargin: true,
  };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    font: { color: colour("--ink"), size: 12.5, family: "system-ui, sans-serif" },
    margin: { l: 56, r: 16, t: 12, b: 46 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    hoverlabel: {
      bgcolor: colour("--raised"),
      bordercolor: colour("--line"),
      font: { color: colour("--ink") },
      align: "left",
    },
    ...extra,
  };
  for (const key of Object.keys(merged)) if (/^[xy]axis\d*$/.test(key)) merged[key] = { ...axis, ...merged[key] };
  return merged;
}

const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

// Draw, or draw again with what changed; `said` is what a screen reader hears of the figure.
export async function draw(node, traces, how, said) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", said);
  if (!globalThis.Plotly) {
    await painted();
    await plotly();
  }
  // else the view was left meanwhile
  if (node.isConnected) await globalThis.Plotly.react(node, traces, layout(how), CONFIG);
  for (const part of [...node.children, document.getElementById("js-plotly-tester")])
    if (part) part.setAttribute("aria-hidden", "true"); // it was said
  return node.isConnected;
}

// Free what a figure holds (WebGL contexts above all, of which a browser has few).
export function erase(node) {
  if (globalThis.Plotly && node.classList.contains("js-plotly-plot")) globalThis.Plotly.purge(node);
}

const SOURCE = "plotly.js";

// Fetch it, and run it later: running it takes the page a second, in which what needs no figure should be seen already.
export function comingPlotly() {
  if (!globalThis.Plotly && !loading && from === fetched && !document.querySelector(`link[href="${SOURCE}"]`))
    document.head.append(Object.assign(document.createElement("link"), { rel: "preload", as: "script", href: SOURCE }));
}

const painted = () =>
  new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve));
  });

// Where it comes from; a report has it in itself.
let from = fetched,
  loading = null;
export function plotlyFrom(how) {
  from = how;
}

// Plotly once, while the page shows what needs no figure.
function plotly() {
  loading = loading || from();
  return loading;
}

// From the server: 1.4 MB on the wire, then from the browser's cache.
function fetched() {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script"),
      find = document.getElementById,
      mended = () => {
        delete document.getElementById;
      };
    // It adds a style of maps, which the policy forbids and nobody needs, unless it finds one there by its hash.
    document.getElementById = (id) => find.call(document, id) || (/^[0-9a-f]{64}$/.test(id) ? document.body : null);
    script.src = SOURCE;
    script.onload = () => {
      mended();
      resolve();
    };
    script.onerror = () => {
      mended();
      loading = null;
      script.remove();
      reject(new Error("the drawing library did not arrive; reload the page"));
    };
    document.head.append(script);
  });
}

// What does a report know? A server's answers, in the file itself: the same questions, and no more than was kept.
import { Told } from "./told.js";

const SPLITS = ["calibration", "heldout"];
const ROUNDING = 1e-6; // how near a mean of items is to the score that is that mean, as record/paired.py has it

// data: {run, candidates, curve, coordinates, importance: {metric: shares}, details: {number: candidate}, models:
// {label: candidate}, items: {split: {metric: {number or label: values}}}}
export function keptSource(data) {
  const { run, candidates: table } = data,
    place = new Map(table.numbers.map((n, i) => [n, i])),
    { objectives } = run;

  // The place of what a name means; null of a model as it is, which has none.
  function find(text) {
    const best = (better) =>
      table.numbers.reduce((a, _, i) => (better(i) !== null && (a < 0 || better(i) > better(a)) ? i : a), -1);
    const metric = objectives.findIndex((o) => text === `best:${o.name}`);
    if (data.models[text.replace(/^expert: /, "expert ")]) return null;
    const found =
      text === "best"
        ? table.rank.indexOf(0)
        : text === "knee"
          ? (place.get(run.knee) ?? -1)
          : text === "surest"
            ? best((i) => table.sure[i])
            : metric >= 0
              ? best((i) =>
                  table.rank[i] < 0 || !table.feasible[i]
                    ? null
                    : table.values[metric][i] * (objectives[metric].goal === "max" ? 1 : -1),
                )
              : (place.get(
                  Number(
                    /^\d+$/.test(text)
                      ? text
                      : (Object.keys(table.labels).find((n) => table.labels[n] === text) ?? "-1"),
                  ),
                ) ?? (text.length >= 8 ? table.recipe.findIndex((r) => r.startsWith(text.slice(0, 12))) : -1));
    if (found < 0)
      throw new Told(
        404,
        `this report has no candidate ${text}: give a number, an anchor, best, best:METRIC, knee or surest`,
      );
    return found;
  }

  const measures = (values, errors, i) =>
    Object.fromEntries(
      objectives.flatMap((o, k) =>
        values[k][i] === null ? [] : [[o.name, { value: values[k][i], stderr: errors[k][i], count: null }]],
      ),
    );

  function candidate(text) {
    const i = find(text),
      common = { groups: run.groups, experts: run.experts };
    if (i === null) return { ...common, ...data.models[text.replace(/^expert: /, "expert ")] };
    const n = table.numbers[i],
      failure = table.reasons[n] ?? null;
    return {
      ...common,
      number: n,
      label: table.labels[n] ?? String(n),
      stage: table.stages[table.stage[i]],
      recipe: table.recipe[i],
      same_as: null,
      coefficients: null,
      picked: null,
      settings: {},
      measures: measures(table.values, table.stderr, i),
      heldout: measures(table.heldout, table.heldout_stderr, i),
      attempts: 1,
      tries: [],
      seconds: table.seconds[i],
      worker: "",
      failure,
      share: table.share[i],
      front: table.front[i],
      anchor: table.anchor[i],
      feasible: table.feasible[i],
      sure: table.sure[i],
      left: !failure,
      ...data.details[n],
    };
  }

  function compare(one, other) {
    const [a, b] = [candidate(one), candidate(other)],
      key = (c) => (c.number === null ? c.label : c.number);
    for (const c of [a, b])
      if (c.failure) throw new Told(409, `candidate ${c.label} has no scores to compare: ${c.failure}; name another`);
    const items = (split, metric, c) => ((data.items[split] || {})[metric] || {})[key(c)] || null;
    const compared = (split) => {
      const [x, y] = [a, b].map((c) => (split === "heldout" ? c.heldout : c.measures));
      if (!objectives.every((o) => x[o.name] && y[o.name])) return null;
      return {
        a_dominates_b: null,
        b_dominates_a: null,
        objectives: Object.fromEntries(
          objectives.map((o) => [
            o.name,
            difference(o.goal, x[o.name], y[o.name], items(split, o.name, a), items(split, o.name, b)),
          ]),
        ),
      };
    };
    const apart = (split) =>
      Object.fromEntries(
        objectives.flatMap((o) => {
          const [x, y] = [items(split, o.name, a), items(split, o.name, b)];
          return x && y && x.length === y.length
            ? [[o.name, x.map((v, i) => (v === null || y[i] === null ? null : v - y[i]))]]
            : [];
        }),
      );
    return {
      a,
      b,
      calibration: compared("calibration"),
      heldout: compared("heldout"),
      items: Object.fromEntries(SPLITS.map((split) => [split, apart(split)])),
      coefficients:
        a.coefficients && b.coefficients
          ? a.coefficients.map((row, g) => row.map((v, k) => v - b.coefficients[g][k]))
          : null,
    };
  }

  // Which candidates: only what is asked for of them, their numbers and names.
  function candidates({ front, stage, order, limit } = {}) {
    if (!front && !stage) return table;
    const rows = table.numbers
      .map((_, i) => i)
      .filter((i) => (!front || table.front[i]) && (!stage || table.stages[table.stage[i]] === stage));
    if (order === "mean") rows.sort((i, j) => table.rank[i] - table.rank[j]);
    return { ...table, numbers: rows.slice(0, limit).map((i) => table.numbers[i]) };
  }

  const importance = (metric) => {
    if (data.importance[metric]) return data.importance[metric];
    throw new Told(404, "This was not worked out for the report: mergeopt serve tells it.");
  };

  return {
    run: async () => run,
    candidates: async (_, how) => candidates(how),
    coordinates: async () => data.coordinates,
    curve: async () => data.curve,
    importance: async (_, metric) => importance(metric),
    candidate: async (_, text) => candidate(text),
    compare: async (_, a, b) => compare(a, b),
  };
}

// One less the other, as record/paired.py has it: paired where both are means over the same items, in natural units.
export function difference(goal, a, b, x, y) {
  const value = a.value - b.value,
    sign = goal === "max" ? -1 : 1,
    made = { value, better: value === 0 ? null : sign * value < 0 ? "a" : "b", wins: null, losses: null, ties: null };
  const unpaired = {
    ...made,
    stderr: a.stderr === null || b.stderr === null ? null : Math.hypot(a.stderr, b.stderr),
    paired: false,
  };
  if (
    !x ||
    !y ||
    x.length !== y.length ||
    !x.some((v) => v !== null) ||
    x.some((v, i) => (v === null) !== (y[i] === null))
  )
    return unpaired;
  const d = x.flatMap((v, i) => (v === null ? [] : [sign * (v - y[i])])),
    n = d.length,
    counts = { wins: 0, losses: 0, ties: 0 };
  for (const v of d) counts[v < 0 ? "wins" : v > 0 ? "losses" : "ties"] += 1;
  if (!isMean(a.value, x) || !isMean(b.value, y)) return { ...unpaired, ...counts };
  const mean = d.reduce((s, v) => s + v, 0) / n,
    error = n > 1 ? Math.sqrt(d.reduce((s, v) => s + (v - mean) ** 2, 0) / (n - 1) / n) : null;
  return { ...made, stderr: error, paired: true, ...counts };
}

function isMean(value, items) {
  const known = items.filter((v) => v !== null),
    most = known.reduce((a, v) => Math.max(a, Math.abs(v)), 0);
  return Math.abs(known.reduce((s, v) => s + v, 0) / known.length - value) <= ROUNDING * most;
}

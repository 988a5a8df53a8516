// How does a table of candidates follow a run? What is new is merged in: the whole is asked for once.

const LISTS = [
  "numbers",
  "stage",
  "recipe",
  "front",
  "anchor",
  "feasible",
  "failed",
  "share",
  "rank",
  "sure",
  "seconds",
];
const BY_OBJECTIVE = ["values", "stderr", "heldout", "heldout_stderr"];

// table: what /candidates says of all; news: of those since table.event. Gives a new table, in the order of numbers.
export function merged(table, news) {
  const place = new Map(table.numbers.map((n, i) => [n, i])),
    stages = [...new Set([...table.stages, ...news.stages])];
  const made = {
    ...news,
    stages,
    labels: { ...table.labels, ...news.labels },
    reasons: { ...table.reasons, ...news.reasons },
  };
  for (const key of LISTS) made[key] = [...table[key]];
  for (const key of BY_OBJECTIVE) made[key] = table[key].map((column) => [...column]);
  news.numbers.forEach((n, i) => {
    const at = place.get(n) ?? made.numbers.length;
    if (!place.has(n)) place.set(n, at);
    for (const key of LISTS)
      made[key][at] = key === "stage" ? stages.indexOf(news.stages[news.stage[i]]) : news[key][i];
    for (const key of BY_OBJECTIVE)
      made[key].forEach((column, k) => {
        column[at] = news[key][k][i];
      });
  });
  const front = new Set(news.now);
  made.numbers.forEach((n, i) => {
    made.front[i] = front.has(n);
    if (news.ranks) made.rank[i] = news.ranks[n] ?? -1;
    if (news.sures) made.sure[i] = news.sures[n] ?? null;
  });
  made.total = made.numbers.length;
  return made.numbers.every((n, i) => i === 0 || n > made.numbers[i - 1]) ? made : ordered(made);
}

// What /coordinates says of all, and of those since: the same names in both.
export function mergedCoordinates(before, news) {
  const made = { ...news, numbers: [...before.numbers], columns: before.columns.map((column) => [...column]) },
    place = new Map(made.numbers.map((n, i) => [n, i]));
  news.numbers.forEach((n, i) => {
    const at = place.get(n) ?? made.numbers.length;
    made.numbers[at] = n;
    made.columns.forEach((column, k) => {
      column[at] = news.columns[k][i];
    });
  });
  return made;
}

// Late answers come after later questions: in the order of numbers again.
function ordered(table) {
  const order = table.numbers.map((_, i) => i).sort((a, b) => table.numbers[a] - table.numbers[b]),
    made = { ...table };
  for (const key of LISTS) made[key] = order.map((i) => table[key][i]);
  for (const key of BY_OBJECTIVE) made[key] = table[key].map((column) => order.map((i) => column[i]));
  return made;
}

// Which candidate is worth most, where each objective is worth so much? Arithmetic alone: it runs as a slider moves.

// The anchors' box by objective, as losses: {sign, ideal, span}; of all candidates where none is an anchor.
export function boxOf(objectives, table) {
  const anchors = table.anchor.some(Boolean);
  return objectives.map((o, k) => {
    const sign = o.goal === "max" ? -1 : 1;
    let ideal = Infinity,
      worst = -Infinity;
    table.values[k].forEach((v, i) => {
      if (v === null || (anchors && !table.anchor[i])) return;
      ideal = Math.min(ideal, sign * v);
      worst = Math.max(worst, sign * v);
    });
    const flat = worst - ideal <= 1e-12 * Math.max(Math.abs(ideal), Math.abs(worst));
    return { sign, ideal, span: flat ? Math.abs(ideal) || 1 : worst - ideal };
  });
}

// Places of the front that meet the bounds (a number or null an objective), the least weighted mean loss first, ties by
// rank.
export function preferred(table, box, weights, bounds) {
  const sum = weights.reduce((a, b) => a + b, 0),
    share = weights.map((w) => (sum > 0 ? w / sum : 1 / weights.length));
  const found = [];
  for (let i = 0; i < table.numbers.length; i++) {
    if (
      !table.front[i] ||
      !box.every((b, k) => bounds[k] === null || b.sign * table.values[k][i] <= b.sign * bounds[k])
    )
      continue;
    found.push([
      i,
      box.reduce((total, b, k) => total + (share[k] * (b.sign * table.values[k][i] - b.ideal)) / b.span, 0),
    ]);
  }
  return found.sort((a, b) => a[1] - b[1] || table.rank[a[0]] - table.rank[b[0]]).map(([i]) => i);
}

// Figures come from Python as plotly traces whose `meta` says which arm, dataset and seed each trace or point shows (see figure.py);
// nothing here knows what a figure means.
const POINT_ARRAYS = [
  ["x"], ["y"], ["r"], ["theta"], ["text"], ["measure"], ["error_x", "array"], ["error_x", "arrayminus"], ["error_y", "array"],
  ["error_y", "arrayminus"], ["marker", "color"], ["marker", "line", "color"], ["marker", "symbol"],
];

function averaged(trace) {  // means over the shown seeds; intervals belong to all seeds and go
  const { value, seeds } = trace.meta.by_seed;
  const shown = state.seeds.map((seed) => seeds[seed]).filter(Boolean);
  const deep = Array.isArray(trace[value][0]);
  trace[value] = trace[value].map((old, i) => deep
    ? old.map((_, j) => mean(shown.map((values) => values[i][j])))
    : mean(shown.map((values) => values[i])));
  delete trace.error_x;
  delete trace.error_y;
}

function filteredPoints(trace) {
  const { points, rest } = trace.meta;
  const total = Object.values(points)[0].length;
  const kept = [...Array(total).keys()].filter((i) => keep(points, i));
  if (rest && kept.length < total) mergeRest(trace, kept, total);
  else for (const path of POINT_ARRAYS) {
    const values = get(trace, path);
    if (Array.isArray(values) && values.length === total) set(trace, path, kept.map((i) => values[i]));
  }
  return kept.length;
}

function mergeRest(trace, kept, total) {  // the bars of a waterfall must still sum to the total
  const hidden = [...Array(total).keys()].filter((i) => !kept.includes(i));
  const sum = hidden.reduce((all, i) => all + (trace.y[i] ?? 0), 0);
  const last = kept.pop();
  trace.x = [...kept.map((i) => trace.x[i]), word("hidden"), trace.x[last]];
  trace.y = [...kept.map((i) => trace.y[i]), sum, null];
  trace.measure = [...kept.map(() => "relative"), "relative", "total"];
  kept.push(last);
}

function filteredGrid(trace) {
  const rows = trace.y.map((_, i) => i).filter((i) => keep(trace.meta.rows, i));
  const columns = trace.x.map((_, j) => j).filter((j) => keep(trace.meta.columns, j));
  for (const name of ["z", "text"]) {
    if (Array.isArray(trace[name])) trace[name] = rows.map((i) => columns.map((j) => trace[name][i][j]));
  }
  trace.y = rows.map((i) => trace.y[i]);
  trace.x = columns.map((j) => trace.x[j]);
  return rows.length * columns.length;
}

function bands(trace) {  // range of the shown seeds behind a line
  const { by_seed: info } = trace.meta;
  const shown = info?.band ? state.seeds.map((seed) => info.seeds[seed]).filter(Boolean) : [];
  if (shown.length < 2) return [];
  const edge = (pick) => trace.x.map((_, i) => {
    const known = shown.map((values) => values[i]).filter((value) => value != null);
    return known.length ? pick(...known) : null;
  });
  const points = trace.x.map((x, i) => [x, edge(Math.min)[i], edge(Math.max)[i]]).filter((point) => point[1] != null);
  return [{
    type: "scatter", mode: "lines", fill: "toself", hoverinfo: "skip", showlegend: false, legendgroup: trace.legendgroup,
    x: [...points.map((p) => p[0]), ...points.map((p) => p[0]).reverse()],
    y: [...points.map((p) => p[1]), ...points.map((p) => p[2]).reverse()],
    fillcolor: trace.line.color + "26", line: { width: 0 }, yaxis: trace.yaxis, xaxis: trace.xaxis,
  }];
}

function availableViews(figure) {
  return figure.views.filter(([id]) => figure.traces.some((trace) => trace.meta.view === id
    && shows.arm(trace.meta.arm) && shows.dataset(trace.meta.dataset)));
}

function currentView(figure) {
  const ids = availableViews(figure).map(([id]) => id);
  return ids.includes(state.views[figure.id]) ? state.views[figure.id] : ids[0];
}

function currentTraces(figure) {
  const view = currentView(figure);
  const out = [];
  for (const source of figure.traces) {
    const meta = source.meta;
    if (meta.view !== undefined && meta.view !== view) continue;
    if (!shows.arm(meta.arm) || !shows.dataset(meta.dataset) || !shows.seed(meta.seed)) continue;
    if (meta.all_seeds_only && !allSeeds()) continue;
    const trace = structuredClone(source);
    if (meta.by_seed && !allSeeds()) averaged(trace);
    if (meta.points && !filteredPoints(trace)) continue;
    if (meta.rows && !filteredGrid(trace)) continue;
    const values = trace[meta.by_seed?.value];
    if (values && values.flat().every((value) => value == null) && trace.type !== "waterfall") continue;
    if (trace.type === "waterfall" && trace.y.slice(0, -1).some((value) => value == null)) continue;
    if (trace.type === "scatterpolar") for (const key of ["r", "theta"]) trace[key].push(trace[key][0]);
    out.push(...bands(trace), trace);
    delete trace.meta;
  }
  return out;
}

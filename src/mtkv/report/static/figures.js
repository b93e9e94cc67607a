// Figures come from Python as plotly traces whose `meta` says which arm, dataset and seed each trace or point shows (see figure.py);
// nothing here knows what a figure means.
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
  trace.x = [...kept.map((i) => trace.x[i]), words.hidden, trace.x[last]];
  trace.y = [...kept.map((i) => trace.y[i]), sum, null];
  trace.measure = [...kept.map(() => "relative"), "relative", "total"];
  kept.push(last);
}

function filteredGrid(trace) {
  const rows = trace.y.map((_, i) => i).filter((i) => keep(trace.meta.rows, i));
  const columns = trace.x.map((_, j) => j).filter((j) => keep(trace.meta.columns, j));
  trace.z = rows.map((i) => columns.map((j) => trace.z[i][j]));
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
    colored(trace);
    delete trace.meta;
  }
  return out;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function colored(trace) {  // colours that depend on the theme: whiskers, and the inside of hollow marks
  for (const error of [trace.error_x, trace.error_y]) if (error) error.color = css("--soft");
  const inside = trace.marker?.color;
  if (Array.isArray(inside)) trace.marker.color = inside.map((color) => (color === "#ffffff" ? css("--paper") : color));
}

function currentView(figure) {
  const ids = availableViews(figure).map(([id]) => id);
  return ids.includes(state.views[figure.id]) ? state.views[figure.id] : ids[0];
}

function themed(figure) {
  const layout = structuredClone(figure.layout);
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") };
  const axis = { gridcolor: css("--grid"), linecolor: css("--line-strong"), zerolinecolor: css("--soft"), zeroline: false };
  for (const name of ["xaxis", "yaxis"]) layout[name] = layout[name] || {};
  for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = { ...axis, ...layout[key] };
  for (const key of Object.keys(layout)) if (/^xaxis/.test(key) && layout[key].title) layout[key].title.standoff = 8;
  if (layout.polar) {
    layout.polar.bgcolor = "rgba(0,0,0,0)";
    for (const key of ["radialaxis", "angularaxis"]) Object.assign(layout.polar[key], { gridcolor: css("--grid"), linecolor: css("--line-strong") });
  }
  layout.hoverlabel = { bgcolor: css("--paper"), bordercolor: css("--line-strong"), font: { color: css("--ink") } };
  return layout;
}

const looks = new Map();

function draw(figure) {
  const root = document.getElementById(`figure-${figure.id}`);
  const plot = $(".plot", root);
  const select = $("[data-view]", root);
  if (select) {
    const views = availableViews(figure);
    select.replaceChildren(...views.map(([id, name]) => new Option(name, id, false, id === currentView(figure))));
  }
  const traces = currentTraces(figure);
  plot.classList.toggle("empty", !traces.length);
  const look = JSON.stringify([traces, document.documentElement.dataset.theme]);
  if (looks.get(plot) === look) return;  // drawing costs, comparing does not
  looks.set(plot, look);
  if (!traces.length) {
    if (plot.data) Plotly.purge(plot);
    plot.textContent = words.nothing;
    return;
  }
  if (!plot.data) plot.textContent = "";
  Plotly.react(plot, traces, themed(figure), { displaylogo: false, displayModeBar: false, responsive: true });
}

async function exportFigure(figure, kind) {
  const root = document.getElementById(`figure-${figure.id}`);
  const name = [figure.id, currentView(figure)].filter(Boolean).join("-");
  if (kind !== "csv") {
    const plot = $(".plot", root);
    if (plot.data) await Plotly.downloadImage(plot, { format: kind, filename: name, width: plot.clientWidth, height: plot.clientHeight, scale: 2 });
    return;
  }
  const rows = $$("tr", $(".plain", root)).map((row) => [...row.cells].map((cell) => cell.textContent));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asCsv(rows)], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

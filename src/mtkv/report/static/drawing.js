// Draws figures when they come near the window, in the colours of the theme and the words of the language; and exports them.
const PRINT_WIDTH = 690;  // pixels between the margins of a page of A4
const PRINT_HEIGHT = 0.82;  // of the height on screen: two plots fit on a page
const LEGEND_LINE = 20;
const SAID = ["name", "hovertemplate", "x", "y", "theta", "text"];  // what a reader sees of a trace
const AXIS_LABELS = 38;  // two lines below an axis
let printing = false;
let watched = false;
const looks = new Map();
const near = new Set();

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themeColor(color) {  // the inside of hollow marks, and the one grey that would drown in the dark
  if (Array.isArray(color)) return color.map(themeColor);
  if (color === "#ffffff") return css("--paper");
  return color === "#5A6069" && document.documentElement.dataset.theme === "dark" ? "#D0D4DA" : color;
}

function inkOn(color) {  // black or white, whichever contrasts more (WCAG): plotly's own choice can be below 4.5 : 1
  const channel = (i) => parseInt(color.slice(i, i + 2), 16) / 255;
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const [red, green, blue] = [1, 3, 5].map(channel).map(linear);
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) ** 2 > 1.05 * 0.05 ? "#000000" : "#ffffff";
}

function colored(trace) {
  for (const error of [trace.error_x, trace.error_y]) if (error) error.color = css("--soft");
  for (const part of [trace.line, trace.marker, trace.marker?.line]) if (part?.color) part.color = themeColor(part.color);
  if (trace.type === "bar" && trace.texttemplate) trace.insidetextfont = { color: trace.marker.color.map(inkOn) };
}

function legendHeight(layout, traces, width) {  // many arms need many lines below the plot, and the plot keeps its height
  const names = traces.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap").map((trace) => trace.name || "");
  if (layout.showlegend === false || layout.legend?.orientation !== "h" || names.length < 2) return 0;
  const entry = 44 + 7 * Math.max(...names.map((name) => name.length));
  const columns = Math.max(1, Math.floor((width - layout.margin.l - layout.margin.r) / entry));
  return Math.ceil(names.length / columns) * LEGEND_LINE;
}

function themed(figure, traces, width) {
  const layout = structuredClone(figure.layout);
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") };
  const axis = { gridcolor: css("--grid"), linecolor: css("--line-strong"), zerolinecolor: css("--soft"), zeroline: false };
  for (const name of ["xaxis", "yaxis"]) layout[name] = layout[name] || {};
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
    layout[key] = { ...axis, ...layout[key] };
    if (!layout[key].title) continue;
    layout[key].title.text = translated(layout[key].title.text);
    if (key.startsWith("x")) layout[key].title.standoff = 8;
  }
  if (layout.polar) {
    layout.polar.bgcolor = "rgba(0,0,0,0)";
    for (const key of ["radialaxis", "angularaxis"]) Object.assign(layout.polar[key], { gridcolor: css("--grid"), linecolor: css("--line-strong") });
  }
  layout.hoverlabel = { bgcolor: css("--paper"), bordercolor: css("--line-strong"), font: { color: css("--ink") } };
  const labels = layout.xaxis.title ? AXIS_LABELS + LEGEND_LINE : AXIS_LABELS;
  const more = Math.max(0, legendHeight(layout, traces, width) - Math.max(0, layout.margin.b - labels));
  layout.height += more;
  layout.margin.b += more;
  if (printing) Object.assign(layout, { width: PRINT_WIDTH, height: layout.height * PRINT_HEIGHT });
  return layout;
}

function draw(figure) {
  const root = document.getElementById(`figure-${figure.id}`);
  const plot = $(".plot", root);
  const select = $("[data-view]", root);
  if (select) {
    const views = availableViews(figure);
    select.replaceChildren(...views.map(([id, name]) => new Option(translated(name), id, false, id === currentView(figure))));
  }
  const traces = currentTraces(figure);
  plot.classList.toggle("empty", !traces.length);
  const look = JSON.stringify([traces, document.documentElement.dataset.theme, state.lang, printing]);
  if (looks.get(plot) === look) return;  // drawing costs, comparing does not
  looks.set(plot, look);
  if (!traces.length) {
    if (plot.data) Plotly.purge(plot);
    plot.textContent = word("nothing");
    return;
  }
  if (plot.data && !printing && plot.layout.width === PRINT_WIDTH) Plotly.purge(plot);  // or it keeps the width of paper
  if (!plot.data) plot.textContent = "";
  for (const trace of traces) {
    colored(trace);
    for (const name of SAID) if (trace[name]) trace[name] = said(trace[name]);
  }
  Plotly.react(plot, traces, themed(figure, traces, printing ? PRINT_WIDTH : plot.clientWidth), { displaylogo: false, displayModeBar: false, responsive: true });
}

let turn = 0;
async function drawFigures() {  // one at a time, so that the page answers in between; a newer call takes over
  const mine = ++turn;
  document.documentElement.dataset.ready = "no";
  for (const figure of data.figures.filter(({ id }) => near.has(id))) {
    draw(figure);
    await new Promise((done) => setTimeout(done));
    if (mine !== turn) return;
  }
  if (watched) document.documentElement.dataset.ready = "yes";
}

function watchFigures() {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) near.add(target.dataset.figure);
      else near.delete(target.dataset.figure);
    }
    watched = true;
    drawFigures();
  }, { rootMargin: "800px 0px" });
  for (const figure of data.figures) watcher.observe(document.getElementById(`figure-${figure.id}`));
  watched = !data.figures.length;
  drawFigures();
}

function print(on) {  // paper is white and narrow, and wants every figure
  printing = on;
  if (on) document.documentElement.dataset.theme = "light";
  else drawTheme();
  if (on) data.figures.forEach(draw);
  else drawFigures();
}

async function exportFigure(figure, kind) {
  const root = document.getElementById(`figure-${figure.id}`);
  const plot = $(".plot", root);
  const name = [figure.id, currentView(figure)].filter(Boolean).join("-");
  if (kind === "csv") save(`${name}.csv`, asCsv(plainTable($(".plain", root))));
  else if (plot.data) {
    const layout = { ...plot.layout, paper_bgcolor: css("--paper") };
    await Plotly.downloadImage({ data: plot.data, layout }, { format: kind, filename: name, width: plot.clientWidth, height: plot.clientHeight, scale: 2 });
  }
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

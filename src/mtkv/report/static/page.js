// Wires the controls to the state and draws everything.
function drawFilter() {
  for (const kind of KINDS) {
    const menu = $(`[data-filter="${kind}"]`);
    for (const box of $$("input", menu)) box.checked = state[kind].includes(box.value);
    const total = fresh()[kind].length;
    $(".count", menu).textContent = `${state[kind].length}/${total}`;
    menu.toggleAttribute("data-active", state[kind].length < total);
  }
  document.getElementById("subset").hidden = allSeeds();
}

function drawAll() {
  drawTheme();
  drawLanguage();
  drawFilter();
  drawTable();
  drawItems();
  drawFigures();
}

function change(values) {
  Object.assign(state, values);
  writeHash();
  drawAll();
}

function changeTable(values) {
  Object.assign(state, values);
  writeHash();
  drawTable();
}

function move(name, step) {
  const order = state.order.slice();
  const from = order.indexOf(name);
  const to = Math.min(order.length - 1, Math.max(0, from + step));
  order.splice(to, 0, ...order.splice(from, 1));
  changeTable({ order });
  $(`#columns [data-column="${name}"] [data-move="${step}"]`).focus();
}

for (const kind of KINDS) {
  const menu = $(`[data-filter="${kind}"]`);
  const chosen = () => $$("input", menu).filter((box) => box.checked).map((box) => box.value);
  menu.addEventListener("change", () => change({ [kind]: chosen() }));
  $("[data-all]", menu).addEventListener("click", () => change({ [kind]: fresh()[kind] }));
  $("[data-none]", menu).addEventListener("click", () => change({ [kind]: [] }));
}
document.getElementById("reset").addEventListener("click", () => change({ ...fresh(), lang: state.lang, theme: state.theme }));
document.getElementById("theme").addEventListener("click", () => {
  change({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
});
for (const button of $$("[data-lang]")) button.addEventListener("click", () => change({ lang: button.dataset.lang }));
table.addEventListener("click", (event) => {
  const cell = event.target.closest("th, td");
  if (event.target.closest(".number")) showCards(cell);
  if (event.target.closest(".sort")) {
    const name = cell.dataset.column;
    const [old, direction] = state.sort || [];
    const first = name === "arm" ? "ascending" : "descending";
    const second = name === "arm" ? "descending" : "ascending";
    changeTable({ sort: old !== name ? [name, first] : direction === first ? [name, second] : null });
  }
});
$("#columns").addEventListener("change", (event) => {
  const name = event.target.closest(".column").dataset.column;
  changeTable({ hide: event.target.checked ? state.hide.filter((other) => other !== name) : [...state.hide, name] });
});
$("#columns").addEventListener("click", (event) => {
  const button = event.target.closest("[data-move]");
  if (button) move(button.closest(".column").dataset.column, Number(button.dataset.move));
});
for (const button of $$("[data-copy]")) {
  const rows = () => (button.closest("#headline") ? shownTable() : plainTable($(".plain, .claims", button.closest(".figure, section"))));
  button.addEventListener("click", () => copy(FORMATS[button.dataset.copy](rows())));
}
for (const figure of data.figures) {
  const root = document.getElementById(`figure-${figure.id}`);
  $("[data-view]", root)?.addEventListener("change", (event) => {
    state.views[figure.id] = event.target.value;
    writeHash();
    draw(figure);
  });
  for (const button of $$("[data-export]", root)) button.addEventListener("click", () => exportFigure(figure, button.dataset.export));
}
for (const link of $$(".side a, .skip")) {
  link.addEventListener("click", (event) => {  // the hash holds the filter, so a link only scrolls
    event.preventDefault();
    const target = $(link.getAttribute("href"));
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
}
$("[data-close]", dialog).addEventListener("click", () => dialog.close());
document.addEventListener("click", (event) => {
  for (const menu of $$(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.activeElement.closest(".menu[open]");
  if (menu) {
    menu.open = false;
    $("summary", menu).focus();
  }
});
window.addEventListener("hashchange", () => {
  if (location.hash.includes("=")) { readHash(); drawAll(); }
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
window.addEventListener("beforeprint", () => print(true));
window.addEventListener("afterprint", () => print(false));

readHash();
wireItems();
drawAll();
watchFigures();

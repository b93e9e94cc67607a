// The table of scores: hidden and moved columns, sorting, copies.
const table = document.getElementById("scores");
const columnOf = (row, name) => $(`[data-column="${name}"]`, row);
const cellValue = (cell) => (cell.dataset.shown ? Number(cell.dataset.shown) : -Infinity);

function drawCell(cell) {
  const button = $(".number", cell);
  if (!button) return;
  const seeds = JSON.parse(cell.dataset.seeds);
  const value = allSeeds() ? Number(cell.dataset.value) : mean(state.seeds.map((seed) => seeds[seed]));
  cell.dataset.shown = value ?? "";
  button.textContent = value == null ? "—" : value.toFixed(1);
  for (const extra of $$(".ci, .n, .tie", cell)) extra.hidden = !allSeeds();
}

function drawTable() {
  const body = table.tBodies[0];
  const names = ["arm", ...state.order];
  for (const row of table.rows) {
    for (const name of names) {
      const cell = columnOf(row, name);
      row.append(cell);
      cell.hidden = name !== "arm" && (state.hide.includes(name) || !shows.dataset(name));
    }
  }
  for (const row of body.rows) {
    row.hidden = !shows.arm(row.dataset.arm);
    for (const cell of row.cells) if (cell.dataset.seeds) drawCell(cell);
  }
  sortRows(body);
  for (const item of $$("#columns .column")) $("input", item).checked = !state.hide.includes(item.dataset.column);
  const menu = $("#columns .menu-body");
  for (const name of state.order) menu.append($(`[data-column="${name}"]`, menu));
}

function sortRows(body) {
  const [name, direction] = state.sort || [null, null];
  for (const head of table.tHead.rows[0].cells) {
    head.setAttribute("aria-sort", head.dataset.column === name ? direction : "none");
  }
  const place = (row) => [data.baseline, ...data.arms].indexOf(row.dataset.arm);
  const sign = direction === "descending" ? -1 : 1;
  const compare = (a, b) => name === "arm"
    ? sign * a.dataset.arm.localeCompare(b.dataset.arm)
    : sign * (cellValue(columnOf(a, name)) - cellValue(columnOf(b, name)) || 0);
  const pinned = (row) => (row.dataset.arm === data.baseline ? 0 : 1);
  const rows = [...body.rows].sort((a, b) => pinned(a) - pinned(b) || (name ? compare(a, b) : 0) || place(a) - place(b));
  body.append(...rows);
}

function shownTable() {
  const text = (cell) => {
    if (cell.dataset.column === "arm") return cell.parentNode.dataset.arm ?? "arm";
    if (cell.tagName === "TH") return cell.dataset.column;
    const button = $(".number", cell);
    if (!button) return cell.textContent.trim();
    const tied = "tied" in cell.dataset ? "*" : "";
    return allSeeds() ? `${button.textContent} [${cell.dataset.low}, ${cell.dataset.high}]${tied}` : button.textContent;
  };
  return [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].filter((cell) => !cell.hidden).map(text));
}

class Verbatim extends String {} // what a model or a person wrote: nothing in it is a number
const cellText = (cell) => "verbatim" in cell.dataset ? new Verbatim(cell.textContent) : (cell.children.length ? cell.innerText.replace(/\s+/g, " ").trim() : cell.textContent);
const plainTable = (table) => $$("tr", table).map((row) => [...row.cells].map(cellText));

const asCsv = (rows) => rows.map((row) => row.map((cell) => {
  const plain = cell instanceof Verbatim ? cell : cell.replaceAll("\u2212", "-");
  return /[",\u0000-\u001f\u007f\u0085\u2028\u2029]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}).join(",")).join("\n") + "\n";
const reference = (letter) => `&#${letter.charCodeAt()};`;
const markdownCell = (cell) => cell.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("&", "&amp;").replaceAll("<", "&lt;")
  .replace(/[\u0000-\u001f\u007f\u0085\u2028\u2029]/g, reference);
const asMarkdown = ([head, ...rows]) => [head, head.map(() => "---"), ...rows]
  .map((row) => `| ${row.map(markdownCell).join(" | ")} |`).join("\n") + "\n";
const LATEX = {
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2212": "$-$", "—": "---", "Δ": "$\\Delta$", "≥": "$\\geq$",
};
const latexLetter = (letter) => LATEX[letter] ?? (letter < " " || letter === "\u007f" ? `\\textasciicircum{}${String.fromCharCode(letter.charCodeAt() ^ 64)}` : `\\${letter}`);
const latexCell = (cell) => cell.replace(/[\t\n\v\f\r]/g, " ").replace(/[\\&%$#_{}~^\u2212—Δ≥\u0000-\u001f\u007f]/g, latexLetter);
const asLatex = ([head, ...rows]) => {
  const line = (row) => `${row.map(latexCell).join(" & ")} \\\\`;
  return ["\\begin{tabular}{l" + "r".repeat(head.length - 1) + "}", "\\toprule", line(head), "\\midrule", ...rows.map(line),
    "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
};
const FORMATS = { csv: asCsv, markdown: asMarkdown, latex: asLatex };

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(word("copied"));
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.rows = 12;
    area.style.width = "100%";
    openDialog(word("copy_by_hand"), [area]);
    area.select();
  }
}

function toast(text) {
  const box = document.getElementById("toast");
  box.textContent = text;
  box.classList.add("on");
  setTimeout(() => box.classList.remove("on"), 1800);
}

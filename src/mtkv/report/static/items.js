// The item browser: items that one arm answers right (in more seeds) and another does not, as items.py lists them. Everything from
// data becomes text, never markup.
const ITEMS_AT_ONCE = 20;
const browser = document.getElementById("item-browser");
let parsedItems = null;
let itemsShown = ITEMS_AT_ONCE;

function itemLists() {  // one list per pair of arms and dataset; texts are kept once and meant by their numbers
  parsedItems ??= island("item-browser-data");
  return parsedItems.lists.filter((list) => shows.arm(list.arm) && shows.arm(list.other) && shows.dataset(list.dataset));
}

const chosenLists = () => itemLists().filter(({ arm, other, dataset }) => (!state.items.right || arm === state.items.right)
  && (!state.items.wrong || other === state.items.wrong) && (!state.items.dataset || dataset === state.items.dataset));

function itemRow(list, [item, right_share, wrong_share, right_seed, wrong_seed, right_text, wrong_text]) {
  const { texts, questions } = parsedItems;
  const [question, gold] = questions[list.dataset][item].map((number) => texts[number]);
  return {
    item, question, gold, dataset: list.dataset,
    right: { arm: list.arm, share: right_share, seed: right_seed, text: texts[right_text] },
    wrong: { arm: list.other, share: wrong_share, seed: wrong_seed, text: texts[wrong_text] },
  };
}

function itemRows(lists) {
  const wanted = (state.items.search ?? "").toLowerCase();
  const says = (row) => [row.item, row.question, row.gold, row.right.text, row.wrong.text].some((text) => text.toLowerCase().includes(wanted));
  const rows = lists.flatMap((list) => list.shown.map((entry) => itemRow(list, entry)));
  return rows.filter((row) => shows.seed(row.right.seed) && shows.seed(row.wrong.seed) && (!wanted || says(row)));
}

function answerElements({ arm, share, seed, text }) {
  const told = word("items.answer", { arm, seed, share: Math.round(share * 100) });
  return [element("dt", told), element("dd", text || "—")];
}

function itemElement(row) {
  const summary = element("summary", null, element("code", row.item.startsWith(row.dataset) ? row.item : `${row.dataset} · ${row.item}`), " ",
    element("span", `✓ ${row.right.arm}`), " ", element("span", `✗ ${row.wrong.arm}`), " ",
    element("small", row.question.replace(/\s+/g, " ").slice(0, 120)));
  const list = element("dl", null, element("dt", word("items.question")), element("dd", row.question), element("dt", word("items.gold")),
    element("dd", row.gold), ...answerElements(row.right), ...answerElements(row.wrong));
  const made = element("details", null, summary, list);
  made.className = "item";
  return made;
}

function fillItemChoices(lists) {
  const keys = { right: ["arm", data.arms], wrong: ["other", data.arms], dataset: ["dataset", data.datasets] };
  for (const [name, [key, values]] of Object.entries(keys)) {
    const present = new Set(lists.map((list) => list[key]));
    const options = values.filter((value) => present.has(value)).map((value) => new Option(value, value, false, value === state.items[name]));
    $(`[data-item="${name}"]`, browser).replaceChildren(new Option(word("items.any"), "", false, !state.items[name]), ...options);
  }
}

function drawItems() {
  if (!browser) return;
  fillItemChoices(itemLists());
  const search = $("[data-item=search]", browser);
  if (search.value !== (state.items.search ?? "")) search.value = state.items.search ?? "";
  const lists = chosenLists();
  const rows = itemRows(lists);
  const shown = rows.slice(0, itemsShown);
  const count = lists.reduce((sum, list) => sum + list.n, 0);
  $("#item-count").textContent = word("items.count", { shown: shown.length, kept: rows.length, count });
  $("#item-list").replaceChildren(...shown.map(itemElement));
  $("#item-more").hidden = shown.length === rows.length;
}

function changeItems(values) {
  itemsShown = ITEMS_AT_ONCE;
  Object.assign(state.items, values);
  writeHash();
  drawItems();
}

function wireItems() {
  if (!browser) return;
  for (const control of $$("[data-item]", browser)) {
    control.addEventListener(control.type === "search" ? "input" : "change", () => changeItems({ [control.dataset.item]: control.value }));
  }
  $("#item-swap").addEventListener("click", () => changeItems({ right: state.items.wrong, wrong: state.items.right }));
  $("#item-more").addEventListener("click", () => {
    itemsShown += ITEMS_AT_ONCE;
    const first = $$("#item-list summary").length;
    drawItems();
    $$("#item-list summary")[first]?.focus();
  });
}

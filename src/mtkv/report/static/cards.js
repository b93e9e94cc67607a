// From a number to the cards of the runs that made it.
const dialog = document.getElementById("card");
let parsedCards = null;
const cards = () => (parsedCards ??= island("cards"));  // large, and few readers open one

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  if (text != null) made.textContent = text;
  made.append(...children);
  return made;
}

function openDialog(title, children) {
  document.getElementById("card-title").textContent = title;
  document.getElementById("card-body").replaceChildren(...children);
  dialog.showModal();
}

function cardsOf(arm, seed, dataset) {
  const run = `${arm}/seed${seed}`;
  const others = data.datasets.filter((name) => name !== dataset && dataset !== "macro");
  return Object.keys(cards()).filter((key) => ["arms", "predictions", "scores", "latents"].some((stage) => key === `${stage}/${run}`
    || key.startsWith(`${stage}/${run}/`)) && !others.some((name) => key.endsWith(`/${name}`)));
}

function showCards(cell) {
  const arm = cell.parentNode.dataset.arm;
  const dataset = cell.dataset.column;
  const parts = [];
  for (const [seed, value] of Object.entries(JSON.parse(cell.dataset.seeds))) {
    const keys = cardsOf(arm, seed, dataset);
    if (value == null && !keys.length) continue;
    parts.push(element("h3", `${word("seed")} ${seed}: ${value == null ? word("not_run") : `${value.toFixed(1)} %`}`));
    if (!keys.length) parts.push(element("p", word("no_card")));
    for (const key of keys) {
      const card = element("details", null, element("summary", key), element("pre", JSON.stringify(cards()[key], null, 2)));
      card.className = "card";
      card.open = parts.length < 3;
      parts.push(card);
    }
  }
  openDialog(`${arm} · ${dataset}: ${$(".number", cell).textContent} %`, parts);
}

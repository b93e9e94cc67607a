// What the page shows, and its place in the URL hash. The parts of this folder become one script, in the order of embed.py.
const island = (id) => JSON.parse(document.getElementById(id).textContent);
const data = island("data");
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const KINDS = ["arms", "datasets", "seeds"];
const COLUMNS = [...data.datasets, "macro"];
const LOOKS = { lang: ["en", "zh"], theme: ["light", "dark"] };
const ITEM_KEYS = ["right", "wrong", "dataset", "search"];

const fresh = () => ({
  arms: data.arms.slice(), datasets: data.datasets.slice(), seeds: data.seeds.map(String),
  sort: null, order: COLUMNS.slice(), hide: [], views: {}, items: {}, lang: "en", theme: null,
});
let state = fresh();

function readHash() {
  state = fresh();
  const text = location.hash.slice(1);
  if (!text.includes("=")) return;
  const given = new URLSearchParams(text);
  for (const kind of KINDS) {
    if (given.has(kind)) {
      const wanted = given.get(kind).split(",");
      state[kind] = fresh()[kind].filter((value) => wanted.includes(value));
    }
  }
  for (const [name, known] of Object.entries(LOOKS)) if (known.includes(given.get(name))) state[name] = given.get(name);
  const sort = (given.get("sort") || "").split(":");
  if (["arm", ...COLUMNS].includes(sort[0]) && ["ascending", "descending"].includes(sort[1])) state.sort = sort;
  if (given.has("hide")) state.hide = given.get("hide").split(",").filter((name) => COLUMNS.includes(name));
  if (given.has("order")) {
    const order = given.get("order").split(",").filter((name) => COLUMNS.includes(name));
    state.order = [...new Set([...order, ...COLUMNS])];
  }
  for (const [key, value] of given) {
    if (key.startsWith("view.")) state.views[key.slice(5)] = value;
    if (key.startsWith("item.") && ITEM_KEYS.includes(key.slice(5))) state.items[key.slice(5)] = value;
  }
}

function writeHash() {
  const given = new URLSearchParams();
  const full = fresh();
  for (const kind of KINDS) if (state[kind].length < full[kind].length) given.set(kind, state[kind].join(","));
  if (state.sort) given.set("sort", state.sort.join(":"));
  if (state.hide.length) given.set("hide", state.hide.join(","));
  if (state.order.join() !== COLUMNS.join()) given.set("order", state.order.join(","));
  for (const [key, value] of Object.entries(state.views)) given.set(`view.${key}`, value);
  for (const [key, value] of Object.entries(state.items)) if (value) given.set(`item.${key}`, value);
  for (const name of Object.keys(LOOKS)) if (state[name] !== full[name]) given.set(name, state[name]);
  const text = given.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

const shows = {
  arm: (value) => value == null || state.arms.includes(value),
  dataset: (value) => value == null || value === "macro" || state.datasets.includes(value),
  seed: (value) => value == null || state.seeds.includes(String(value)),
};
const allSeeds = () => state.seeds.length === data.seeds.length;
const keep = (keys, i) => Object.entries(keys || {}).every(([kind, values]) => shows[kind](values[i]));
const mean = (values) => {
  const known = values.filter((value) => value != null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
};
const get = (object, path) => path.reduce((inner, key) => inner?.[key], object);
const set = (object, path, value) => { get(object, path.slice(0, -1))[path.at(-1)] = value; };

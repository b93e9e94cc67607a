// The switch of languages: fixed texts are marked in the page and looked up by their English, which each element keeps.
const word = (key, facts = {}) => Object.entries(facts)
  .reduce((text, [name, value]) => text.replace(`{${name}}`, () => value), data.words[state.lang][key]);
const translated = (text) => (state.lang === "en" ? text : data.phrases[text] ?? text);
const said = (value) => (Array.isArray(value) ? value.map(said) : typeof value === "string" ? translated(value) : value);
const MARKED = { title: "data-say-title", "aria-label": "data-say-label", placeholder: "data-say-placeholder" };

function drawLanguage() {
  document.documentElement.lang = state.lang;
  for (const element of $$("[data-say]")) {
    element.dataset.say ||= element.textContent;
    element.textContent = translated(element.dataset.say);
  }
  for (const [name, mark] of Object.entries(MARKED)) {
    for (const element of $$(`[${mark}]`)) {
      if (!element.getAttribute(mark)) element.setAttribute(mark, element.getAttribute(name));
      element.setAttribute(name, translated(element.getAttribute(mark)));
    }
  }
  for (const button of $$("[data-lang]")) button.setAttribute("aria-pressed", String(button.dataset.lang === state.lang));
}

function drawTheme() {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = state.theme ?? preferred;
  document.getElementById("theme").setAttribute("aria-pressed", String((state.theme ?? preferred) === "dark"));
}

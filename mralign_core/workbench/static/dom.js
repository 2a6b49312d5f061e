// Elements from values. Text of models comes into the page as text nodes only: nothing here reads HTML.

/** An element with properties and children; `data-*`, `aria-*`, `role`, `for` and `class` are attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [each, what] of Object.entries(value)) each.startsWith("--") ? element.style.setProperty(each, what) : (element.style[each] = what);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/** Children that are there: the DOM itself would write the word null. */
const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Put children in the place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
}

/** Text in pieces, gold answers marked. */
export function marked(pieces) {
  return pieces.map(([text, isGold]) => (isGold ? h("mark", { title: "a gold answer" }, text) : text));
}

/** A text of a model's: what it holds stays what it holds, whichever way it reads. */
export function model(text, tag = "p") {
  return h(tag, { class: "model" }, text);
}

/** A list of names and values; values that are not there are left out. */
export function pairs(entries, name = "") {
  const rows = Object.entries(entries).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "pairs", "aria-label": name || null }, rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

/** A table in a box that scrolls by itself, also by keyboard. Cells and names of columns are texts, numbers or elements; the first of a row is its header. */
export function table(caption, columns, rows, { isNumeric = () => true, kind = null, order = () => null } = {}) {
  const cell = (value, place) => h(place ? "td" : "th", place ? { class: isNumeric(place) ? null : "text" } : { scope: "row" }, value ?? "–");
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table: ${caption}` },
    h("table", { class: kind }, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((name, place) => h("th", { scope: "col", class: place && isNumeric(place) ? null : "text", "aria-sort": order(place) }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell))))));
}

export const number = (value, digits = 2) => {
  if (value === null || value === undefined) return "–";
  const text = Number(value).toFixed(digits);
  return text.replace("-", Number(text) ? "−" : ""); // no −0.00
};
export const signed = (value, digits = 2) => (Number(Number(value).toFixed(digits)) > 0 ? `+${number(value, digits)}` : number(value, digits));
export const count = (value) => Number(value ?? 0).toLocaleString("en");
export const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

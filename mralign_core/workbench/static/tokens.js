// The tokens of a trace, each on the colour of its weight or of what training changed: asked for when somebody opens them.
import { ask } from "./address.js";
import { inkOn, movedColour, weightColour } from "./colours.js";
import { count, fill, h, number, signed, table } from "./dom.js";

export function tokensSection(id, run, variant) {
  const box = h("div", { "aria-live": "polite" });
  const details = h("details", {}, h("summary", {}, "Each token with its weight"), box);
  details.addEventListener("toggle", async () => {
    if (!details.open || box.childElementCount) return;
    fill(box, h("p", { class: "muted" }, "Loading."));
    try {
      fill(box, shown(await ask("tokens", id), run, variant));
    } catch (error) {
      if (error.name !== "AbortError") fill(box, h("p", { class: "problem", role: "alert" }, error.message));
    }
  });
  return h("section", { "aria-labelledby": "tokens" }, h("h2", { id: "tokens" }, "Tokens"), details);
}

function shown(tokens, run, variant) {
  const after = tokens.after[variant];
  const known = { weight: tokens.weights, moved: after && tokens.before };
  const titles = { weight: "by weight", moved: "by what training changed" };
  const choices = Object.keys(titles).filter((name) => known[name]);
  const told = tokens.ids.map((token, place) => ({
    token,
    text: tokens.texts ? tokens.texts[place] : `${token ?? "end"} `,
    weight: tokens.weights?.[place],
    before: tokens.before?.[place],
    after: after?.[place],
  }));
  const list = h("p", { class: "model tokens" }, told.map((each) => h("span", { class: "token", title: numbersOf(each) }, visible(each, tokens.texts))));
  const buttons = choices.map((name) => h("button", { type: "button", onclick: () => paint(name) }, titles[name]));
  const paint = (name) => {
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(choices[place] === name)));
    [...list.children].forEach((span, place) => colour(span, told[place], name, run));
  };
  if (choices.length) paint(choices[0]);
  return [
    tokens.problem ? h("p", { class: "problem" }, `Shown by their numbers: ${tokens.problem}.`) : null,
    choices.length ? h("div", { class: "bar", role: "group", "aria-label": "Colour tokens" }, h("span", { class: "muted" }, "Colour"), buttons) : null,
    list,
    inNumbers(told, tokens.texts, after, run, variant),
  ];
}

/** A token as it is read: a line's end is seen, and a token that shares a character with the next one is a dot. */
function visible({ text, token }, texts) {
  if (!texts) return text;
  if (text === "") return token === null ? "⟨end⟩" : "·";
  return text.replaceAll("\n", "⏎\n");
}

function numbersOf({ token, weight, before, after }) {
  const parts = [`token ${token ?? "of the end"}`, weight === undefined ? "" : `weight ${number(weight)}`];
  if (before !== undefined) parts.push(`log-probability ${number(before, 3)}`);
  if (after !== undefined) parts.push(`${number(after, 3)} after (${signed(after - before, 3)})`);
  return parts.filter(Boolean).join(", ");
}

function colour(span, each, name, run) {
  const shade = name === "weight" ? weightColour(each.weight, run.weight_scale) : movedColour(each.after - each.before, run.weight_scale);
  span.style.background = shade;
  span.style.color = inkOn(shade);
}

/** The same as a table, for the keyboard and screen readers, made when it is opened. */
function inNumbers(told, texts, after, run, variant) {
  const details = h("details", {}, h("summary", {}, "As a table"));
  const title = run.looked_at.find((each) => each.name === variant)?.title;
  const columns = ["", "token", "weight", "before", ...(after ? [`after ${title}`, "change"] : [])];
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const rows = told.map((each, place) => [count(place), texts ? JSON.stringify(each.text) : String(each.token), number(each.weight), number(each.before, 3),
      ...(after ? [number(each.after, 3), signed(each.after - each.before, 3)] : [])]);
    details.append(table("Tokens of the completion, log-probabilities in nats", columns, rows, { isNumeric: (place) => place !== 1 }));
  });
  return details;
}

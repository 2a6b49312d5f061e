// One question: the variants' answers beside each other, draw by draw, and what it gave to train on.
import { ask, to } from "./address.js";
import { labelColour } from "./colours.js";
import { count, h, marked, table } from "./dom.js";
import { outcomeTitle, tone, verdict } from "./lists.js";

export async function showQuestion(asked, run) {
  const { draw = "", variants = "", ...id } = asked;
  const question = await ask("question", id);
  const shown = variants ? variants.split(",") : Object.keys(question.answers_by_variant);
  const content = [
    h("p", { class: "facts" }, question.answers.length ? h("span", {}, h("span", { class: "muted" }, "gold: "), question.answers.join(" / ")) : h("span", {}, "no gold answer"),
      h("span", {}, question.source), question.stratum ? h("span", {}, question.stratum) : null, h("span", { class: "muted" }, question.question_id)),
    ...answers(question, run, shown, draw),
    draws(question),
    traces(question),
  ];
  return { title: question.question, content };
}

function answers(question, run, shown, draw) {
  const given = question.answers_by_variant;
  if (!Object.keys(given).length) return [];
  const numbers = [...new Set(Object.values(given).flatMap((rows) => rows.map((row) => row.draw)))].sort((a, b) => a - b);
  const at = draw === "" ? numbers[0] : Number(draw);
  const titles = Object.fromEntries(run.variants.map((each) => [each.name, each.title]));
  const keep = { id: question.question_id, variants: shown.length < Object.keys(given).length ? shown.join(",") : "" };
  const links = numbers.map((each) => h("a", { href: to("question", { ...keep, draw: each }), "aria-current": each === at ? "true" : null }, `draw ${each}`));
  const toggles = Object.keys(given).map((name) => {
    const rest = shown.includes(name) ? shown.filter((each) => each !== name) : [...shown, name];
    const order = Object.keys(given).filter((each) => rest.includes(each));
    return h("a", { class: "toggle", "aria-pressed": String(shown.includes(name)), role: "button", href: to("question", { id: question.question_id, draw: at, variants: order.join(",") }) }, titles[name] ?? name);
  });
  return [
    h("section", { "aria-labelledby": "answers" }, h("h2", { id: "answers" }, "Answers side by side"),
      h("p", { class: "muted" }, h("small", {}, h("mark", {}, "marked"), ": a gold answer", given.on ? ["; ", h("span", { class: "same" }, "grey"), ": as in think on, up to where the two part"] : null)),
      h("nav", { class: "bar", "aria-label": "Draws" }, links), h("div", { class: "bar", role: "group", "aria-label": "Variants" }, toggles),
      h("div", { class: "beside" }, shown.filter((name) => given[name]).map((name) => column(titles[name] ?? name, given[name].find((row) => row.draw === at), first(given, at), run))),
      overview(given, titles, numbers, keep)),
  ];
}

const SIGNS = { better: "✓ ", worse: "✗ " };

/** The segments of think-on in that draw, to grey in the others what is the same. */
function first(given, at) {
  return (given.on?.find((row) => row.draw === at)?.segments ?? []).map((pieces) => pieces.map(([text]) => text).join(""));
}

function column(title, answer, before, run) {
  if (!answer) return h("article", {}, h("h3", {}, title), h("p", { class: "muted" }, "no answer in this draw"));
  let same = title !== "think on";
  const segments = answer.segments.map((pieces, place) => {
    same = same && pieces.map(([text]) => text).join("") === before[place];
    return [answer.labels ? labelsOf(answer.labels[place] ?? [], run) : null, h("p", { class: same ? "model same" : "model" }, marked(pieces))];
  });
  return h("article", { "aria-label": title },
    h("h3", {}, title), h("p", { class: "facts" }, h("span", { class: tone(answer) }, verdict(answer)), h("span", {}, outcomeTitle(answer.outcome)), h("span", {}, `${count(answer.num_tokens)} tokens`)),
    segments.length ? segments : h("p", { class: "muted" }, "no thinking"),
    h("p", { class: "model answer" }, h("span", { class: "muted" }, "Answer: "), marked(answer.marked_answer)));
}

/** What a segment of a labelled thinking does. */
function labelsOf(labels, run) {
  return h("ol", { class: "strip" }, h("li", { style: { borderColor: labelColour(labels[0], run) } }, labels.join(" + ") || "unlabelled"));
}

function overview(given, titles, numbers, keep) {
  if (numbers.length < 2) return null;
  const mark = (row) => (row ? h("a", { href: to("question", { ...keep, draw: row.draw }), class: tone(row) }, `${SIGNS[tone(row)] ?? ""}${row.answer || "–"}`) : "–");
  const rows = Object.entries(given).map(([name, answered]) => [titles[name] ?? name, ...numbers.map((each) => mark(answered.find((row) => row.draw === each)))]);
  return table("Answers of all draws: ✓ right, ✗ wrong", ["variant", ...numbers.map((each) => `draw ${each}`)], rows, { isNumeric: () => false });
}

function draws(question) {
  if (!question.draws.length) return null;
  return h("section", { "aria-labelledby": "draws" }, h("h2", { id: "draws" }, "Draws before training"),
    h("div", { class: "beside" }, question.draws.map((draw) => column(`think-${draw.thinking_mode}, draw ${draw.draw}`, draw, [], null))));
}

function traces(question) {
  if (!question.traces.length) return null;
  return h("section", { "aria-labelledby": "traces" }, h("h2", { id: "traces" }, "Traces of it"),
    h("ul", {}, question.traces.map((trace) => h("li", {}, h("a", { href: to("trace", { id: trace.trace_id }), "data-item": true }, `draw ${trace.draw}, ${trace.polarity}`)))));
}

// Lists of traces, draws and answers: filters in the address, a page of rows, and all of them as JSON lines.
import { ask, save, to } from "./address.js";
import { inkOn, labelColour, movedColour, weightColour } from "./colours.js";
import { count, fill, h, model, number, signed } from "./dom.js";

const HITS = { both: "in thinking and answer", thinking: "right in thinking, wrong in answer", answer: "in the answer only", neither: "in neither",
  gap: "in exactly one (hit gap)", named: "named in the thinking", right: "answer right", wrong: "answer wrong" };
const FLIPS = ["any", "wrong to right", "right to wrong", "both right", "both wrong"];
const ENDINGS = { named_right: "named, answered right", named_wrong: "named, answered wrong", unnamed_right: "not named, answered right", unnamed_wrong: "not named, answered wrong" };
const YES_NO = { yes: "yes", no: "no" };
const BEHIND_HINT = "labels in a row behind the last mention: <start> is the mention, <stop> the answer; <start> → <stop> is nothing between them";
const PATTERN_HINT = "labels in a row: retrieval → backtracking → … → synthesis (… any number of steps, * one step, framing + chaining both in one, <start>, <stop>)";

/** Filters of each list: name → what it is called, its choices (value → title) or what kind of input it is, and the usual choice. */
function fields(kind, run) {
  const labels = Object.fromEntries(run.labels.map((each) => [each.name, each.name]));
  const variants = Object.fromEntries(run.variants.map((each) => [each.name, each.title]));
  const lookedAt = run.looked_at.map((each) => [each.name, each.title]);
  const trained = Object.fromEntries(lookedAt);
  const sets = kind === "answers" ? run.evaluated : run.aligned;
  const strata = [...new Set(sets.flatMap((each) => each.strata))].filter(Boolean).sort();
  const ofQuestion = { source: ["set", same(sets.map((each) => each.source))], stratum: ["stratum", same(strata)] };
  const outcome = { outcome: ["outcome", Object.fromEntries(run.outcomes.map((name) => [name, outcomeTitle(name)]))] };
  return {
    traces: {
      text: ["text", "search"],
      pattern: ["labels in a row", "pattern"],
      polarity: ["polarity", same(["positive", "negative"])],
      label: ["a segment's label", labels],
      disputed: ["annotators differ", { any: "anywhere", ...Object.fromEntries(Object.keys(labels).map((name) => [name, `about ${name}`])) }],
      rule: ["decided by", same(run.rules)],
      weight_min: ["weight from", "number"],
      weight_max: ["weight to", "number"],
      ...(lookedAt.length ? { moved_min: ["a segment's change from", "number"], moved_max: ["change to", "number"] } : {}),
      ...(lookedAt.length > 1 ? { trained: ["after training", trained, lookedAt.at(-1)[0]] } : {}),
      ...ofQuestion,
      ...(run.has.includes("thinking-draws") ? { of: ["of", { "thinking-draws": "think-on draws" }] } : {}),
    },
    draws: {
      text: ["text", "search"],
      mode: ["thinking", { on: "on", off: "off" }],
      hit: ["gold answer", HITS],
      ...outcome, ...ofQuestion,
    },
    answers: {
      text: ["text", "search"],
      variant: ["variant", variants, run.variants.at(-1)?.name],
      against: ["compared with", variants],
      flip: ["flip", same(FLIPS)],
      ...(run.has.includes("judgements") ? { judged_flip: ["flip by the judges", same(FLIPS)], verdict: ["judges say", same(["right", "wrong"])] } : {}),
      ...(run.labelled.length ? { pattern: ["labels in a row", "pattern"] } : {}),
      hit: ["gold answer", HITS],
      hit_before: ["…in the one compared with", HITS],
      ...outcome, ...ofQuestion,
    },
  }[kind];
}

/** Filters of the report's part "Where thinking and answer part", where the run has what they are about. */
function thinkingFields(kind, run) {
  if (kind === "draws") return {};
  const ofLabels = kind === "traces" ? run.has.includes("annotations") : run.has.includes("held-out-annotations");
  return {
    ending: ["gold answer in the thinking", ENDINGS],
    first_from: ["first mention from, %", "number"], first_to: ["first mention to, %", "number"],
    last_from: ["last mention from, %", "number"], last_to: ["last mention to, %", "number"],
    after_from: ["segments behind it from", "number"], after_to: ["segments behind it to", "number"],
    ...(ofLabels ? { behind: ["labels behind the last mention", "pattern"], loops: ["loops", YES_NO] } : {}),
    repeats: ["repeats itself", YES_NO],
    segments_from: ["segments from", "number"], segments_to: ["segments to", "number"],
    tokens_from: ["tokens from", "number"], tokens_to: ["tokens to", "number"],
  };
}

/** The variant whose answers have no thinking. */
const WITHOUT_THINKING = "off";

/** What a list can be sorted by: name → what comes first. By mentions only where there is thinking. */
function orders(kind, filter, run) {
  const thinks = kind !== "answers" || (filter.variant || run.variants.at(-1)?.name) !== WITHOUT_THINKING;
  const mentions = thinks ? { first: "earliest first mention", last: "earliest last mention", after: "most segments behind it" } : {};
  if (kind !== "traces") return { length: kind === "answers" ? "most tokens" : "longest", ...(kind === "answers" ? mentions : {}) };
  return {
    ...(run.has.includes("weights") ? { weight: "largest weight, then ratio", weight_low: "smallest weight, then ratio" } : {}),
    ...(run.has.includes("annotations") ? { disagreement: "most disagreement" } : {}),
    length: "most segments", tokens: "most tokens", ...mentions,
    ...(run.looked_at.length ? { raised: "largest implicit reward", lowered: "smallest implicit reward", kl: "largest KL a token" } : {}),
  };
}

/** Links that sort the list, in the address as all else; the one that it is sorted by turns the order round. */
function orderBar(kind, filter, run) {
  const link = (name, title) => {
    const isOwn = (filter.sort ?? "") === name, isReversed = Boolean(filter.reverse);
    return h("a", { href: to(kind, { ...filter, sort: name, reverse: name && isOwn && !isReversed ? "yes" : "" }), "aria-current": isOwn ? "true" : null,
      title: isOwn && name ? "turn it round" : null }, isOwn && isReversed ? `${title}, turned round ↑` : isOwn && name ? `${title} ↓` : title);
  };
  return h("nav", { class: "bar orders", "aria-label": "Order" }, h("span", { class: "muted" }, "Sorted by"), Object.entries({ "": "place in the file", ...orders(kind, filter, run) }).map(([name, title]) => link(name, title)));
}

const same = (names) => Object.fromEntries(names.map((name) => [name, name]));
const TITLES = { traces: "Traces", draws: "Draws", answers: "Answers" };
const ROWS = { traces: traceRow, draws: drawRow, answers: answerRow };

export async function showList(kind, asked, run) {
  const { page, ...filter } = asked;
  const form = filterForm(kind, filter, run);
  let found;
  try {
    found = await withProgress(ask(kind, asked), tellProgress);
  } catch (error) {
    return { title: TITLES[kind], content: [form, h("p", { class: "problem", role: "alert" }, error.message)] };
  }
  const summary = found.total ? `${count(found.total)} found, page ${count(found.page)} of ${count(found.num_pages)}` : "Nothing is like that.";
  const content = [
    form,
    h("div", { class: "bar" }, h("p", { id: "found" }, summary),
      found.total ? h("button", { type: "button", onclick: (event) => exported(event.target, kind, filter, run) }, "Save all as JSON lines") : null),
    found.total > 1 ? orderBar(kind, filter, run) : null,
    kind === "traces" && found.rows.some((row) => row.labels) ? h("p", { class: "muted" }, small(h("span", { class: "disputed" }, "dotted"), ": the annotators gave the segment different labels; the number behind a label is its weight")) : null,
    h("ol", { class: "cards", "aria-labelledby": "found" }, found.rows.map((row) => h("li", {}, ROWS[kind](row, run, filter)))),
    pages(kind, filter, found),
  ];
  return { title: TITLES[kind], content };
}

/** Wait for what the server works out, telling meanwhile how far an analysis is that nobody has asked by before. */
async function withProgress(waited, tell) {
  const timer = setInterval(async () => {
    const [work] = await ask("under-way").catch(() => []);
    if (work) tell(work);
  }, ASKS_MS);
  try {
    return await waited;
  } finally {
    clearInterval(timer);
  }
}

const ASKS_MS = 1000;

const howFar = ({ done, rows }) => `${count(done)}${rows ? ` of ${count(rows)}` : ""}`;

function tellProgress(work) {
  const main = document.querySelector("#main");
  if (!main.hasAttribute("aria-busy")) return;
  if (!document.querySelector("#found")) fill(main, h("p", { id: "found" }));
  fill(document.querySelector("#found"), `Analysing every text, which is done once: ${howFar(work)}. `, h("progress", { value: work.done, max: work.rows || null, "aria-label": "Analysed" }), " If you go on, what is done is kept, but for the last 2,000 texts at most.");
}

const small = (...words) => h("small", {}, words);

/** A name that says of which run the rows are and how they were chosen. */
function fileName(kind, filter, run) {
  const parts = [kind, run.title, ...Object.entries(filter).map(([name, value]) => `${name}=${value}`)];
  const plain = parts.map((part) => part.replace(/[^\p{L}\p{N}=._+-]+/gu, "-").replace(/^-+|-+$/g, "")).join("_");
  return `${plain.slice(0, LONGEST_NAME)}.jsonl`;
}

const LONGEST_NAME = 150;

async function exported(button, kind, filter, run) {
  button.disabled = true;
  button.textContent = "Saving…";
  try {
    await withProgress(save(`${kind}.jsonl`, filter, fileName(kind, filter, run)), (work) => (button.textContent = `Saving… ${howFar(work)} analysed`));
    button.textContent = "Saved";
  } catch (error) {
    button.textContent = error.message;
  }
  button.disabled = false;
}

function filterForm(kind, filter, run) {
  const inputs = (known) => Object.entries(known).map(([name, [title, type, usual]]) =>
    h("label", { class: typeof type === "object" ? null : type }, `${title} `, input(name, type, filter[name] ?? usual ?? "", usual)));
  const more = thinkingFields(kind, run);
  const form = h("form", { role: "search", "aria-label": `Which ${kind}`, class: "filters" }, inputs(fields(kind, run)),
    Object.keys(more).length ? h("details", { open: Object.keys(more).some((name) => filter[name]) }, h("summary", {}, "Where thinking and answer part"), h("div", { class: "more" }, inputs(more))) : null,
    h("button", {}, "Find"), Object.keys(filter).length ? h("a", { href: to(kind) }, "Clear") : null,
    filter.question ? h("span", {}, `of question ${filter.question}`) : null);
  const submit = () => {
    const values = Object.fromEntries(new FormData(form));
    document.dispatchEvent(new CustomEvent("workbench:go", { detail: to(kind, { ...values, question: filter.question, sort: filter.sort, reverse: filter.reverse }) }));
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  form.addEventListener("change", (event) => { if (event.target.matches("select")) submit(); });
  return form;
}

function input(name, type, value, usual) {
  if (type === "search") return h("input", { type: "search", name, value, placeholder: "question, thinking or answer" });
  if (type === "pattern") return h("input", { type: "text", name, value, placeholder: name === "behind" ? "<start> → analogy" : "retrieval → … → synthesis", title: name === "behind" ? BEHIND_HINT : PATTERN_HINT, spellcheck: "false" });
  if (type === "number") return h("input", { type: "number", step: "any", name, value });
  const options = Object.entries(type).map(([each, title]) => h("option", { value: each, selected: each === value }, title));
  return h("select", { name }, usual ? null : h("option", { value: "" }, "–"), options);
}

function pages(kind, filter, found) {
  const link = (page, title, rel) => h("a", { href: to(kind, { ...filter, page }), rel }, title);
  return h("nav", { class: "pages", "aria-label": "Pages" },
    found.page > 1 ? link(found.page - 1, "← previous", "prev") : null, " ",
    found.page < found.num_pages ? link(found.page + 1, "next →", "next") : null);
}

const golds = (answers) => (answers?.length ? h("span", {}, h("span", { class: "muted" }, "gold: "), answers.join(" / ")) : null);

function traceRow(row, run, filter) {
  const disputed = (row.disputed ?? []).filter(Boolean).length;
  return h("article", {},
    h("h2", { class: "model" }, h("a", { href: to("trace", { id: row.trace_id }), "data-item": true }, row.question)),
    h("p", { class: "facts" },
      h("span", {}, h("span", { class: "dot", style: { background: run.polarities[row.polarity] } }), row.polarity),
      golds(row.answers), row.stratum ? h("span", {}, row.stratum) : null,
      h("span", {}, `${row.num_segments} segments, ${count(row.reasoning_tokens)} tokens`), mentionsOf(row),
      row.labels ? h("span", {}, disputed ? `annotators differ on ${disputed}` : "annotators agree") : null,
      row.weights?.length ? h("span", {}, `weights ${number(Math.min(...row.weights))} to ${number(Math.max(...row.weights))}${clippedOf(row)}`) : null,
      row.moved === undefined ? null : h("span", { title: "after training, in nats" }, `implicit reward ${signed(row.implicit_reward, 1)}, ${signed(row.moved / row.num_completion_tokens, 3)} a token, KL ${number(row.kl / row.num_completion_tokens, 3)} a token`)),
    strip(row, run, filter),
    h("p", { class: "model answer" }, h("span", { class: "muted" }, "Answer: "), row.answer || "–"));
}

/** Where a thinking names a gold answer, in a list that is sorted by that. */
function mentionsOf({ mentions }) {
  if (!mentions) return null;
  const at = (place) => `${Math.round(100 * place)} %`;
  return h("span", {}, mentions.last === null ? "names no gold answer" : `names it first at ${at(mentions.first)}, last at ${at(mentions.last)}, ${mentions.segments_after} segments behind`);
}

const ratioText = (ratio) => (Number.isFinite(ratio) ? number(ratio) : "infinite");

/** How many weights of a trace the clip cut off, and of which ratios. */
function clippedOf(row) {
  const cut = row.clipped.flatMap((isClipped, place) => (isClipped ? [row.ratios[place] ?? Infinity] : [])).sort((a, b) => a - b);
  if (!cut.length) return "";
  return `, ${cut.length} clipped (${[...new Set([cut[0], cut.at(-1)].map(ratioText))].join(" to ")} before)`;
}

/** Whether a list is about what training did to the traces. */
const isOfTraining = (filter) => ["raised", "lowered", "kl"].includes(filter.sort) || filter.moved_min || filter.moved_max;

/** The labels of a trace in a row, each with its weight, and what training changed where the list is about that. */
function strip(row, run, filter) {
  if (!row.labels) return null;
  return h("ol", { class: "strip", "aria-label": "Labels in a row" }, row.labels.map((labels, place) => {
    const weight = row.weights?.[place];
    const shade = weight === undefined || weight === null ? null : weightColour(weight, run.weight_scale);
    return h("li", { class: row.disputed?.[place] ? "disputed" : null, style: { borderColor: labelColour(labels[0], run) } },
      labels.join(" + ") || "unlabelled", " ",
      shade ? h("span", { class: "w", title: row.clipped[place] ? `clipped: its ratio is ${ratioText(row.ratios[place])}` : null, style: { background: shade, color: inkOn(shade) } }, number(weight), row.clipped[place] ? " clipped" : null) : null,
      isOfTraining(filter) ? change(row.segments_moved?.[place], run) : null);
  }));
}

/** A change in log-probability, in nats a token, on its colour. */
export function change(moved, run) {
  if (moved === undefined || moved === null) return null;
  const shade = movedColour(moved, run.weight_scale);
  return h("span", { class: "w", title: "change in log-probability, nats a token", style: { background: shade, color: inkOn(shade) } }, `Δ ${signed(moved)}`);
}

export function verdict(row) {
  if (row.em_answer === null) return "not scored";
  const answer = row.em_answer ? "answer right" : "answer wrong";
  return row.em_thought === null ? answer : `thinking ${row.em_thought ? "names" : "does not name"} it, ${answer}`;
}

/** What became of a draw, in words; ok is of the reply's form, and says nothing of whether it is right. */
export const outcomeTitle = (outcome) => (outcome === "ok" ? "well-formed" : outcome.replaceAll("_", " "));

export const tone = (row) => (row.em_answer === null ? null : row.em_answer ? "better" : "worse");

function drawRow(row) {
  return h("article", {},
    h("h2", { class: "model" }, h("a", { href: to("question", { id: row.question_id }), "data-item": true }, row.question ?? row.question_id)),
    h("p", { class: "facts" }, h("span", {}, `think-${row.thinking_mode}, draw ${row.draw}`), golds(row.answers),
      h("span", { class: tone(row) }, verdict(row)), h("span", {}, outcomeTitle(row.outcome)), h("span", {}, `${row.num_tokens} tokens`)),
    row.thinking ? h("details", {}, h("summary", {}, "Thinking"), model(row.thinking)) : null,
    h("p", { class: "model answer" }, h("span", { class: "muted" }, "Answer: "), row.answer || "–"));
}

function answerRow(row, run, filter) {
  const titles = Object.fromEntries(run.variants.map((each) => [each.name, each.title]));
  return h("article", {},
    h("h2", { class: "model" }, h("a", { href: to("question", { id: row.question_id, draw: row.draw }), "data-item": true }, row.question ?? row.question_id)),
    h("p", { class: "facts" }, golds(row.answers), h("span", {}, `draw ${row.draw}`), row.stratum ? h("span", {}, row.stratum) : null),
    Object.entries(row.answers_by_variant).reverse().map(([variant, answer]) => answer && h("div", { class: "said" },
      h("p", { class: "facts" }, h("strong", {}, titles[variant]), h("span", { class: tone(answer) }, verdict(answer)),
        answer.judged_right === undefined ? null : h("span", { class: answer.judged_right ? "better" : "worse" }, `judges: ${answer.judged_right ? "right" : "wrong"}`), h("span", {}, outcomeTitle(answer.outcome)), mentionsOf(answer)),
      strip(answer, run, filter),
      h("p", { class: "model answer" }, answer.answer || "–"))));
}

// What is in a run, each number a link to the cases behind it.
import { ask, to, toReport } from "./address.js";
import { count, fill, h, number, share, signed, table } from "./dom.js";

const link = (value, view, values) => h("a", { href: to(view, values) }, value);

export async function showOverview(asked, run) {
  const found = await summary();
  return { title: "Overview", content: [contents(run), found.composition ? h("p", {}, found.composition) : null, starts(found, run), answersTable(found.answers, asked), flipsTable("flips", "Answers that flipped", "flip", found.flips, asked, run), judgedFlips(asked, run), labelTable(found.labels, asked), ruleTable(found.rules, asked)] };
}

let counted = { address: "", found: null };

/** Asked for once, as the run itself is: sorting a table counts nothing anew. */
async function summary() {
  if (counted.address !== to("")) counted = { address: to(""), found: await ask("summary") };
  return counted.found;
}

/**
 * A table that a click on a column sorts, in the address as lists are; a second click turns the order round. Numbers begin with the
 * largest, texts with the first by alphabet; what has no value comes last.
 *
 * `columns` are [title, row => value, row => cell], without a cell where the value is a count of its own.
 */
function sortable(name, caption, columns, rows, asked) {
  if (!rows.length) return null;
  const isReversed = Boolean(asked.reverse), own = columns.findIndex(([title]) => asked.sort === `${name}/${title}`);
  const isText = (place) => typeof columns[place][1](rows[0]) === "string";
  const head = ([title], place) => h("a", { href: to("", { sort: `${name}/${title}`, reverse: place === own && !isReversed ? "yes" : "" }), "data-stays": `${name}/${title}`,
    "aria-current": place === own ? "true" : null, title: place === own ? "turn it round" : "sort by it" }, place === own ? `${title} ${isReversed ? "↑" : "↓"}` : title);
  const order = (place) => (place === own ? (isText(place) === isReversed ? "descending" : "ascending") : null);
  const sorted = own < 0 ? rows : inOrder(rows, columns[own][1], order(own) === "descending");
  return table(caption, columns.map(head), sorted.map((row) => columns.map(([, value, cell]) => (cell ? cell(row) : count(value(row))))), { order });
}

function inOrder(rows, value, isDescending) {
  const isThere = (row) => value(row) !== null && value(row) !== undefined;
  const compare = (one, other) => (typeof value(one) === "string" ? value(one).localeCompare(value(other), "en") : value(one) - value(other));
  return [...rows.filter(isThere).sort((one, other) => (isDescending ? compare(other, one) : compare(one, other))), ...rows.filter((row) => !isThere(row))];
}

function contents(run) {
  const names = { candidates: ["traces to train on", "traces"], generations: ["draws", "draws"], questions: ["questions to align on", ""], "evaluation-questions": ["questions to evaluate on", ""] };
  const shown = Object.entries(names).filter(([name]) => run.rows[name] !== undefined);
  return h("p", { class: "facts" }, shown.map(([name, [title, view]]) => h("span", {}, view ? link(`${count(run.rows[name])} ${title}`, view) : `${count(run.rows[name])} ${title}`)), run.report ? h("a", { href: toReport(run.report) }, "the report") : null, h("span", { class: "muted" }, run.store));
}

/** Where most people begin. */
function starts(found, run) {
  const [before, last] = run.variants.slice(-2);
  const items = [
    run.has.includes("weights") ? [link("Traces by their largest weight", "traces", { sort: "weight" }), "; where the clip made weights equal, by the ratio behind them"] : null,
    ...disputes(found.most_disputed),
    last ? [link(`Answers right in thinking, wrong in answer, ${last.title}`, "answers", { variant: last.name, hit: "thinking" })] : null,
    before && last ? [link(`Answers right with ${before.title}, wrong with ${last.title}`, "answers", { variant: last.name, against: before.name, flip: "right to wrong" }), ", draw by draw: a question has several, and may be there more than once"] : null,
  ].filter(Boolean);
  return items.length ? h("ul", { class: "starts" }, items.map((item) => h("li", {}, item))) : null;
}

/** What the annotators differ on most, by number and by share, which are rarely of one label. */
function disputes({ segments, share: largest, fewest }) {
  if (!segments) return [];
  const told = (row) => `${count(row.by_one)} of the ${count(row.by_any)} segments that either gave it (${share(row.by_one, row.by_any)})`;
  const about = (row) => link(row.label, "traces", { disputed: row.label, sort: "disagreement" });
  return [
    [link("Traces that the annotators differ on most", "traces", { sort: "disagreement" })],
    ["The label that most segments have from one annotator only: ", about(segments), `, ${told(segments)}`],
    largest && largest.label !== segments.label ? [`The largest share, of labels that either gave ${count(fewest)} segments or more: `, about(largest), `, ${told(largest)}`] : null,
  ];
}

function answersTable(rows, asked) {
  const hits = { both: "thinking and answer", thinking: "thinking only", answer: "answer only", neither: "neither" };
  const cell = (hit) => (row) => h("span", {}, link(count(row[hit]), "answers", { variant: row.variant, hit }), " ", h("small", {}, share(row[hit], row.answers)));
  return sortable("answers", "Answers by where a gold answer is", [
    ["variant", (row) => row.title, (row) => link(row.title, "answers", { variant: row.variant })],
    ...Object.entries(hits).map(([hit, title]) => [title, (row) => row[hit], cell(hit)]),
    ["answers", (row) => row.answers],
  ], rows, asked);
}

function flipsTable(name, caption, field, rows, asked, run) {
  const title = (variant) => run.variants.find((each) => each.name === variant)?.title ?? variant;
  const told = (row) => `${title(row.variant)} against ${title(row.baseline)}`;
  const cell = (which, flip) => (row) => link(count(row[which]), "answers", { variant: row.variant, against: row.baseline, [field]: flip });
  const flips = { better: "wrong to right", worse: "right to wrong" };
  return sortable(name, caption, [["comparison", told, told], ...Object.entries(flips).map(([which, flip]) => [flip, (row) => row[which], cell(which, flip)])], rows, asked);
}

/** Asked for by itself: the first time, the votes have to be counted. */
function judgedFlips(asked, run) {
  if (!run.has.includes("judgements") || !run.has.includes("results")) return null;
  const box = h("div");
  ask("judged-flips").then((rows) => fill(box, flipsTable("judged", "Answers that flipped by the judges", "judged_flip", rows, asked, run)))
    .catch((error) => error.name === "AbortError" || fill(box, h("p", { class: "problem" }, error.message)));
  return box;
}

function labelTable(rows, asked) {
  if (!rows.length) return null;
  const largest = (row) => (row.weight_max === undefined ? "–" : link(number(row.weight_max), "traces", { label: row.label, sort: "weight" }));
  return [
    sortable("labels", "Labels, by how many segments have them from one annotator only", [
      ["label", (row) => row.label, (row) => link(row.label, "traces", { label: row.label })],
      ["by one only", (row) => row.by_one, (row) => link(count(row.by_one), "traces", { disputed: row.label, sort: "disagreement" })],
      ["of those by either", (row) => (row.by_any ? row.by_one / row.by_any : null), (row) => share(row.by_one, row.by_any)],
      ["by A only", (row) => row.only_a], ["by B only", (row) => row.only_b], ["by both", (row) => row.both], ["in the end", (row) => row.segments],
      ["mean weight", (row) => row.weight_mean, (row) => number(row.weight_mean)], ["largest", (row) => row.weight_max, largest],
    ], rows, asked),
    h("p", { class: "muted" }, "Numbers of segments. By A, by B: what each annotator said. In the end: what was made of it, which has the weights; where the other annotator or the adjudicator won, it lacks the label, so this may be less than what either said."),
  ];
}

function ruleTable(rows, asked) {
  const rule = (row) => link(row.rule, "traces", { rule: row.rule });
  return sortable("rules", "What decided the labels", [["rule", (row) => row.rule, rule], ["segments", (row) => row.segments], ["annotators differ", (row) => row.disputed]], rows, asked);
}

/** Moves that leave a label, below which shares of them are left unshaded. */
const FEWEST_MOVES = 10;

/** Moves of traces to train on, by polarity, or of held-out thinkings, by variant, there with what training changed. */
export async function showMoves(asked, run) {
  const { variant = "" } = asked, polarity = asked.polarity ?? "positive";
  const own = (move) => (variant ? move.variant === variant : move.polarity === polarity);
  const all = await (variant ? ask("held-out-moves", { variant }) : ask("moves"));
  const moves = tableOfMoves(all.filter(own));
  const before = variant && variant !== BEFORE ? tableOfMoves(all.filter((move) => move.variant === BEFORE)) : null;
  const among = run.variants.find((each) => each.name === variant)?.title ?? variant;
  const title = variant ? `held-out thinkings of ${among}` : `${polarity} traces`;
  const states = ["<start>", ...run.labels.map((label) => label.name), "<stop>"].filter((name) => moves.states.has(name) || before?.states.has(name));
  const told = (move) => `${count(move.moves)} moves in ${count(move.traces)} ${variant ? "thinkings" : "traces"}`;
  const cell = (source, target) => {
    const move = moves.of(source, target);
    if (!move && !before?.of(source, target)) return "";
    const pattern = `${source} → ${target}`, weight = move?.weight == null ? "" : `×${number(move.weight)}`;
    const enough = moves.left(source) >= FEWEST_MOVES, changed = before && enough && before.left(source) >= FEWEST_MOVES ? 100 * (moves.share(source, target) - before.share(source, target)) : null;
    return h("a", { class: "cell", href: variant ? to("answers", { variant: move ? variant : BEFORE, pattern }) : to("traces", { polarity, pattern }), title: `${pattern}: ${told(move ?? before.of(source, target))}${move ? "" : " of think on, none here"}${weight && `, mean weight ${weight}`}${changed === null ? "" : `, ${signed(changed, 1)} points against think on`}`, style: { "--part": enough ? moves.share(source, target) : 0 } },
      `${Math.round(100 * moves.share(source, target))}`, h("small", {}, `n ${count(move?.moves)}`), weight ? h("small", {}, weight) : null, changed === null ? null : h("small", {}, `Δ ${signed(changed, 0)}`));
  };
  const rows = states.filter((name) => name !== "<stop>").map((source) => [h("span", {}, source, " ", h("small", {}, `n ${count(moves.left(source))}`)), ...states.slice(1).map((target) => cell(source, target))]);
  return { title: "Moves between labels", content: [
    h("nav", { class: "bar", "aria-label": "Of which" }, moveLinks(variant, polarity, run)),
    h("p", { class: "muted" }, `Of the moves that leave a label (row), how many in a hundred enter each (column); n, how many moves that is of; ${variant ? (before ? "Δ, how many in a hundred more or fewer than before training (think on)" : "before training, this is") : "×, the mean weight that the steps so entered have (the answer, <stop>, has none)"}. Rows of fewer than ${FEWEST_MOVES} moves are not shaded: 100 of one move says little. Counted as they stand; the report's ${variant ? "Δ is" : "P⁺ and P⁻ are"} estimated from them${variant ? ", and it says which differences are beyond chance" : ""}. A cell leads to its ${variant ? "answers" : "traces"}.`),
    table(`Moves in ${title}`, ["from ↓ to →", ...states.slice(1)], rows, { kind: "moves" }),
  ] };
}

/** What variants that were trained are compared with. */
const BEFORE = "on";

function tableOfMoves(moves) {
  const by = Object.fromEntries(moves.map((move) => [`${move.source} ${move.target}`, move]));
  const of = (source, target) => by[`${source} ${target}`];
  const leaving = {};
  for (const move of moves) leaving[move.source] = (leaving[move.source] ?? 0) + move.moves;
  const left = (name) => leaving[name] ?? 0;
  const share = (source, target) => (left(source) ? (of(source, target)?.moves ?? 0) / left(source) : 0);
  return { of, left, share, states: new Set(moves.flatMap((move) => [move.source, move.target])) };
}

function moveLinks(variant, polarity, run) {
  const here = (is) => (is ? "true" : null);
  return [
    ...["positive", "negative"].map((name) => h("a", { href: to("moves", { polarity: name }), "aria-current": here(!variant && name === polarity) }, `in ${name} traces`)),
    ...run.labelled.map((each) => h("a", { href: to("moves", { variant: each.name }), "aria-current": here(each.name === variant) }, `in held-out thinkings of ${each.title}`)),
  ];
}

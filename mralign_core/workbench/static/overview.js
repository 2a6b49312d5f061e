// What is in a run, each number a link to the cases behind it.
import { ask, to, toReport } from "./address.js";
import { count, fill, h, number, share, signed, table } from "./dom.js";

const link = (value, view, values) => h("a", { href: to(view, values) }, value);

export async function showOverview(_, run) {
  const found = await ask("summary");
  return { title: "Overview", content: [contents(run), found.composition ? h("p", {}, found.composition) : null, starts(found, run), answersTable(found.answers), flipsTable("Answers that flipped", "flip", found.flips, run), judgedFlips(run), labelTable(found.labels), ruleTable(found.rules)] };
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

function answersTable(rows) {
  if (!rows.length) return null;
  const cells = (row) => [
    link(row.title, "answers", { variant: row.variant }),
    ...["both", "thinking", "answer", "neither"].map((hit) => h("span", {}, link(count(row[hit]), "answers", { variant: row.variant, hit }), " ", h("small", {}, share(row[hit], row.answers)))),
    count(row.answers),
  ];
  return table("Answers by where a gold answer is", ["variant", "thinking and answer", "thinking only", "answer only", "neither", "answers"], rows.map(cells));
}

function flipsTable(caption, field, rows, run) {
  if (!rows.length) return null;
  const title = (name) => run.variants.find((each) => each.name === name)?.title ?? name;
  const cells = (row) => [
    `${title(row.variant)} against ${title(row.baseline)}`,
    link(count(row.better), "answers", { variant: row.variant, against: row.baseline, [field]: "wrong to right" }),
    link(count(row.worse), "answers", { variant: row.variant, against: row.baseline, [field]: "right to wrong" }),
  ];
  return table(caption, ["comparison", "wrong to right", "right to wrong"], rows.map(cells));
}

/** Asked for by itself: the first time, the votes have to be counted. */
function judgedFlips(run) {
  if (!run.has.includes("judgements") || !run.has.includes("results")) return null;
  const box = h("div");
  ask("judged-flips").then((rows) => fill(box, flipsTable("Answers that flipped by the judges", "judged_flip", rows, run)))
    .catch((error) => error.name === "AbortError" || fill(box, h("p", { class: "problem" }, error.message)));
  return box;
}

function labelTable(rows) {
  if (!rows.length) return null;
  const cells = (row) => [
    link(row.label, "traces", { label: row.label }),
    link(count(row.by_one), "traces", { disputed: row.label, sort: "disagreement" }), share(row.by_one, row.by_any),
    count(row.only_a), count(row.only_b), count(row.both), count(row.segments),
    number(row.weight_mean), row.weight_max === undefined ? "–" : link(number(row.weight_max), "traces", { label: row.label, sort: "weight" }),
  ];
  return [
    table("Labels, by how many segments have them from one annotator only", ["label", "by one only", "of those by either", "by A only", "by B only", "by both", "in the end", "mean weight", "largest"], rows.map(cells)),
    h("p", { class: "muted" }, "Numbers of segments. By A, by B: what each annotator said. In the end: what was made of it, which has the weights; where the other annotator or the adjudicator won, it lacks the label, so this may be less than what either said."),
  ];
}

function ruleTable(rows) {
  if (!rows.length) return null;
  return table("What decided the labels", ["rule", "segments", "annotators differ"], rows.map((row) => [link(row.rule, "traces", { rule: row.rule }), count(row.segments), count(row.disputed)]));
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

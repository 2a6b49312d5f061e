// What comes of a round, shown to a rater who has gone through all of it.
import { ask, to } from "./address.js";
import { h, model, number, pairs, share, table } from "./dom.js";
import { post, sheetButton } from "./rate.js";

const interval = (row) => (row.low === null ? "too few" : `[${number(row.low)}, ${number(row.high)}]`);
const between = (row) => `${row.a} and ${row.b}${row.column ? `, ${row.column}` : ""}`;

export async function showRatingResults(asked) {
  const found = await ask("rate/results", { round: asked.round, rater: asked.rater });
  const isLabels = found.kind === "labels";
  return { title: "What the ratings say", content: [
    h("p", { class: "facts" }, h("span", {}, `round ${found.round}`), h("span", {}, `done: ${found.finished.join(", ")}`), found.rating.length ? h("span", {}, `still rating: ${found.rating.join(", ")}`) : null),
    found.agreement.length ? agreement(found.agreement, isLabels) : h("p", {}, "There is nobody to compare with yet."),
    ...found.tables.map((each) => table(`${each.title || "People and the judge"}: ${each.rater}`, each.columns, each.rows)),
    ...found.notes.map((note) => h("p", { class: "muted" }, note)),
    machinesDiffer(found, asked.rater),
    differences(found),
    h("p", {}, found.finished.map((rater) => [h("span", {}, `${rater}: `), sheetButton(found.round, rater), " "])),
    isLabels ? publishing(found.round, asked.rater) : null,
    h("p", {}, h("a", { href: to("rate", { round: found.round, rater: asked.rater }) }, "Back to the items"), " ", h("a", { href: to("rate") }, "All rounds")),
  ].filter(Boolean) };
}

/** A rater's labels, of all rounds and as they stand now, become an annotator that a config can name. */
function publishing(round, rater) {
  const told = h("p", { role: "status" });
  const publish = async (button) => {
    button.disabled = true;
    try {
      const made = await post("rate/publish", { round, rater });
      told.textContent = `${made.segments} segments are ${made.artifact}. In a config: annotate.annotator_a: ${made.name}`;
    } catch (error) { told.textContent = error.message; }
    button.disabled = false;
  };
  return h("section", { "aria-labelledby": "publish" }, h("h2", { id: "publish" }, "As an annotator"),
    h("p", {}, h("button", { type: "button", onclick: (event) => publish(event.target) }, `Publish ${rater}'s labels as human/${rater}`)), told);
}

function agreement(rows, isLabels) {
  const more = isLabels ? ["κ entailed", "κ macro"] : [];
  const cells = rows.map((row) => [between(row), row.segments, share(row.observed, 1), number(row.kappa), interval(row), ...(isLabels ? [number(row.kappa_entailed), number(row.kappa_macro)] : [])]);
  return table("Agreement beyond chance (Cohen's κ, 95 % intervals)", ["between", isLabels ? "segments" : "answers", "agree", "κ", "interval", ...more], cells);
}

/** Where this rater said something else than the annotators or the pipeline; now that they are done, they may see it. */
function machinesDiffer(found, rater) {
  const rows = found.machines_differ;
  if (!rows) return null;
  const labels = (given) => given.join(" + ") || "no label";
  const same = (one, other) => labels([...one].sort()) === labels([...other].sort());
  return h("section", { "aria-labelledby": "machines" }, h("h2", { id: "machines" }, `Where ${rater} and the annotators or the pipeline differ: ${rows.length}`),
    h("ol", { class: "cards" }, rows.map((row) => h("li", {}, h("article", {},
      h("h3", {}, h("a", { href: to("trace", { id: row.about }) }, `Trace ${row.cells.trace}, segment ${row.cells.segment}`)),
      h("p", { class: "model muted" }, row.cells.question), model(row.cells.text),
      pairs({ [rater]: labels(row.own), ...Object.fromEntries(Object.entries(row.machines).map(([name, given]) => [name, same(given, row.own) ? "the same" : labels(given)])), note: row.note && model(row.note, "span") }, "Who said what"))))));
}

function differences(found) {
  if (found.finished.length < 2) return h("p", { class: "muted" }, "When a second rater is done, what the two differ on stands here, side by side.");
  return h("section", { "aria-labelledby": "differences" }, h("h2", { id: "differences" }, `Where raters differ: ${found.differences.length}`),
    h("ol", { class: "cards" }, found.differences.map((each) => h("li", {}, h("article", {},
      h("h3", {}, each.cells.trace ? `Trace ${each.cells.trace}, segment ${each.cells.segment}` : "Answer"),
      h("p", { class: "model muted" }, each.cells.question),
      model(each.cells.text ?? each.cells.answer),
      each.cells.reference_answers ? h("p", { class: "muted model" }, `reference: ${each.cells.reference_answers}`) : null,
      h("div", { class: "beside" }, Object.entries(each.raters).map(([rater, { said, note }]) => h("div", { class: "said" },
        h("p", {}, h("strong", {}, rater), ": ", Object.values(said).join(" + ")), note ? model(note) : null))))))));
}

// One trace: its segments by label or by weight, who decided each label, the numbers of each weight, and what else was drawn.
import { ask, to } from "./address.js";
import { inkOn, labelColour, weightColour } from "./colours.js";
import { count, h, marked, model, number, pairs, table } from "./dom.js";
import { verdict } from "./lists.js";

const RULES = {
  agree: "both annotators gave these labels",
  merge: "common labels of the two, then confident labels of one",
  adjudicate: "the adjudicator decided",
  unlabelled: "no label was found",
};
const ROLES = { annotator_a: "annotator A", annotator_b: "annotator B", adjudicator: "adjudicator" };

export async function showTrace(asked, run) {
  const { by, ...id } = asked;
  const trace = await ask("trace", id);
  const article = h("article", { class: by === "weight" ? "by-weight" : "by-label" });
  article.append(
    h("p", { class: "facts" },
      h("span", {}, h("span", { class: "dot", style: { background: run.polarities[trace.polarity] } }), trace.polarity),
      h("span", {}, h("span", { class: "muted" }, "gold: "), trace.answers.join(" / ")),
      trace.stratum ? h("span", {}, trace.stratum) : null,
      h("span", {}, `draw ${trace.draw}`), h("span", {}, `${count(trace.num_tokens)} tokens`),
      h("span", { class: "muted" }, trace.trace_id)),
    toolbar(article, id, by),
    h("ol", { class: "segments", "aria-label": "Segments of the thinking" }, trace.segments.map((segment, place) => segmentItem(segment, place, run, move(trace, place)))),
    h("p", { class: "model answer" }, h("span", { class: "muted" }, "Answer: "), marked(trace.marked_answer)),
    h("p", { class: "muted" }, "Tokens behind the thinking, those of the answer, have the weight 1."));
  return { title: trace.question, content: [article, reference(trace), questionDraws(trace), replies(trace), texts(trace)] };
}

function toolbar(article, id, by) {
  const button = h("button", { type: "button", "data-colour": true, "aria-pressed": by === "weight" ? "true" : "false" }, "Colour by weight");
  button.addEventListener("click", () => {
    const isWeight = article.classList.toggle("by-weight");
    article.classList.toggle("by-label", !isWeight);
    button.setAttribute("aria-pressed", String(isWeight));
    history.replaceState(null, "", to("trace", isWeight ? { ...id, by: "weight" } : id));
  });
  return h("div", { class: "bar" }, button);
}

/** The move that a segment makes: from the labels of the step before it that has any, to its own. */
function move(trace, place) {
  const own = trace.segments[place];
  if (!own.labels?.length) return null;
  const before = trace.segments.slice(0, place).findLast((each) => each.labels?.length && each.step !== own.step);
  const [source, target] = [before?.labels ?? ["<start>"], own.labels];
  const title = `${source.join(" + ")} → ${target.join(" + ")}`;
  return h("a", { href: to("traces", { polarity: trace.polarity, pattern: `${source[0]} → ${target[0]}` }) }, title);
}

function segmentItem(segment, place, run, movement) {
  const has = segment.weight !== undefined && segment.weight !== null;
  const shade = has ? weightColour(segment.weight, run.weight_scale) : null;
  const details = h("div", { class: "why", id: `why-${place}`, hidden: true }, decided(segment), numbers(segment, movement, run), tokens(segment));
  const button = h("button", { type: "button", class: "segment-head", "data-item": true, "aria-expanded": "false", "aria-controls": `why-${place}` },
    h("span", { class: "dot", style: { background: labelColour(segment.labels?.[0], run) } }),
    h("span", { class: "labels" }, segment.labels?.join(" + ") || "unlabelled"), " ",
    has ? h("span", { class: "w", style: { background: shade, color: inkOn(shade) } }, h("span", { class: "unseen" }, "weight "), `×${number(segment.weight)}`) : h("span", { class: "muted" }, "no weight"), " ",
    segment.disputed ? h("span", { class: "disputed" }, "disputed") : null);
  button.addEventListener("click", () => {
    details.hidden = !details.hidden;
    button.setAttribute("aria-expanded", String(!details.hidden));
  });
  const item = h("li", { class: "segment" }, button, h("p", { class: "model" }, marked(segment.text)), details);
  item.style.setProperty("--label", labelColour(segment.labels?.[0], run));
  if (shade) {
    item.style.setProperty("--shade", shade);
    item.style.setProperty("--shade-ink", inkOn(shade));
  }
  return item;
}

function said(labels, confidences) {
  if (!labels) return null;
  return labels.map((label, place) => `${label}${confidences?.[place] === undefined ? "" : ` (${number(confidences[place], 1)})`}`).join(", ") || "no label";
}

function decided(segment) {
  if (!segment.rule) return null;
  return pairs({
    "decided by": `${segment.rule}: ${RULES[segment.rule] ?? ""}`,
    "annotator A": said(segment.labels_a, segment.confidences_a),
    "annotator B": said(segment.labels_b, segment.confidences_b),
    "labels": said(segment.labels, segment.confidences),
    "step": String(segment.step),
  }, "Who decided");
}

function numbers(segment, movement, run) {
  if (segment.weight === undefined) return null;
  const interval = segment.weight_low === null ? null : `${number(segment.weight_low)} to ${number(segment.weight_high)}`;
  return pairs({
    "move": movement,
    "weight": `${number(segment.weight, 3)}${segment.clipped ? ", clipped" : ""}`,
    "interval": interval,
    "ratio": `${segment.ratio === null ? "infinite" : number(segment.ratio, 3)}: how much likelier the move is in traces of this polarity than in ${run.weight_scale.reference === "all" ? "all" : "the others"}`,
    "support": `${number(segment.support, 1)} soft counts`,
    "tokens": `${segment.token_end - segment.token_start} (${segment.token_start} to ${segment.token_end})`,
  }, "The weight");
}

function tokens(segment) {
  if (!segment.logps?.length) return null;
  const mean = segment.logp / segment.logps.length;
  const lowest = Math.min(...segment.logps, -1e-9);
  return h("div", {}, pairs({ "log-probability before": `${number(segment.logp)}, ${number(mean, 3)} a token` }, "Before training"),
    h("div", { class: "bars", role: "img", "aria-label": `Log-probability of ${segment.logps.length} tokens, the lowest ${number(lowest)}` },
      segment.logps.map((logp) => h("span", { title: number(logp, 3), style: { height: `${Math.max(2, (100 * logp) / lowest)}%` } }))));
}

function reference(trace) {
  if (!trace.reference) return null;
  return h("section", { "aria-labelledby": "reference" }, h("h2", { id: "reference" }, "Before training"),
    pairs({
      "log-probability of the completion": number(trace.reference.logp),
      "of its KL partner's behind this prompt": number(trace.reference.kl_logp),
    }),
    h("p", {}, h("a", { href: to("trace", { id: trace.reference.partner }) }, "The KL partner")));
}

function questionDraws(trace) {
  const rows = trace.others.map((draw) => [`think-${draw.thinking_mode}, ${draw.draw}`, verdict(draw), draw.outcome.replaceAll("_", " "), draw.answer || "–", count(draw.num_tokens)]);
  return h("section", { "aria-labelledby": "others" }, h("h2", { id: "others" }, "The question's draws"),
    rows.length ? table("All draws of the question", ["draw", "verdict", "outcome", "answer", "tokens"], rows, { isNumeric: (place) => place === 4 }) : h("p", { class: "muted" }, "This run sampled none: its traces were imported."),
    h("p", {}, h("a", { href: to("question", { id: trace.question_id }) }, "All about the question")));
}

function replies(trace) {
  if (!trace.replies.length) return null;
  return h("section", { "aria-labelledby": "replies" }, h("h2", { id: "replies" }, "What the annotators replied"),
    trace.replies.map((reply) => h("details", {},
      h("summary", {}, `${ROLES[reply.role] ?? reply.role}, ${reply.model}${reply.attempt ? ", asked again" : ""}${reply.problem ? " – not used" : ""}`),
      reply.problem ? h("p", { class: "problem" }, reply.problem) : null,
      h("pre", { tabindex: 0, class: "model" }, reply.reply),
      h("p", { class: "muted" }, `${count(reply.prompt_tokens)} + ${count(reply.completion_tokens)} tokens, $${number(reply.cost_usd, 4)}`))));
}

function texts(trace) {
  return h("section", { "aria-labelledby": "texts" }, h("h2", { id: "texts" }, "As it was written"),
    h("details", {}, h("summary", {}, "Prompt"), h("pre", { tabindex: 0, class: "model" }, trace.prompt)),
    h("details", {}, h("summary", {}, "Completion"), h("pre", { tabindex: 0, class: "model" }, trace.completion)));
}

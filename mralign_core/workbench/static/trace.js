// One trace: its segments by label or by weight, who decided each label, the numbers of each weight, and what else was drawn.
import { ask, to } from "./address.js";
import { inkOn, labelColour, movedColour, weightColour } from "./colours.js";
import { count, h, marked, number, pairs, signed, table } from "./dom.js";
import { change, outcomeTitle, verdict } from "./lists.js";
import { tokensSection } from "./tokens.js";

const RULES = {
  agree: "both annotators gave these labels",
  merge: "common labels of the two, then confident labels of one",
  adjudicate: "the adjudicator decided",
  unlabelled: "no label was found",
  distilled: "the distilled annotator was sure, and nobody else was asked",
};
const ROLES = { annotator_a: "annotator A", annotator_b: "annotator B", adjudicator: "adjudicator" };

export async function showTrace(asked, run) {
  const { by = "label", trained, ...id } = asked;
  const trace = await ask("trace", id);
  const variant = trained in trace.trained ? trained : Object.keys(trace.trained).at(-1);
  const article = h("article", { class: `by-${by}` });
  article.append(
    h("p", { class: "facts" },
      h("span", {}, h("span", { class: "dot", style: { background: run.polarities[trace.polarity] } }), trace.polarity),
      h("span", {}, h("span", { class: "muted" }, "gold: "), trace.answers.join(" / ")),
      trace.stratum ? h("span", {}, trace.stratum) : null,
      h("span", {}, `draw ${trace.draw}`), h("span", {}, `${count(trace.num_tokens)} tokens`),
      h("span", { class: "muted" }, trace.trace_id)),
    ...toolbar(article, asked, by, variant, run).filter(Boolean),
    h("ol", { class: "segments", "aria-label": "Segments of the thinking" }, trace.segments.map((segment, place) => segmentItem(segment, place, run, move(trace, place), variant))),
    h("p", { class: "model answer" }, h("span", { class: "muted" }, "Answer: "), marked(trace.marked_answer)),
    h("p", { class: "muted" }, h("mark", {}, "Marked"), ": a gold answer. Tokens behind the thinking, those of the answer, have the weight 1."));
  return { title: trace.question, content: [article, tokensSection(id, run, variant), reference(trace, run), questionDraws(trace), replies(trace), texts(trace)] };
}

/** What segments can be coloured by: name → title. */
const COLOURS = { label: "by label", weight: "by weight", moved: "by what training changed" };

function toolbar(article, asked, by, variant, run) {
  const shown = Object.entries(COLOURS).filter(([name]) => name !== "moved" || variant);
  const buttons = shown.map(([name, title]) => h("button", { type: "button", "aria-pressed": String(name === by), "data-by": name, onclick: () => paint(name) }, title));
  const paint = (name) => {
    article.className = `by-${name}`;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.by === name));
    history.replaceState(null, "", to("trace", { ...asked, by: name === "label" ? "" : name }));
  };
  const others = run.looked_at.length > 1 && variant ? run.looked_at.map((each) => h("a", { class: "toggle", role: "button", "aria-pressed": String(each.name === variant), href: to("trace", { ...asked, trained: each.name }) }, `after ${each.title}`)) : [];
  return [h("div", { class: "bar", role: "group", "aria-label": "Colour segments" }, h("span", { class: "muted" }, "Colour"), buttons),
    others.length ? h("div", { class: "bar", role: "group", "aria-label": "After which training" }, others) : null];
}

/** The move that a segment makes: from the labels of the step before it that has any, to its own. */
function move(trace, place) {
  const own = trace.segments[place];
  if (!own.labels?.length) return null;
  const before = trace.segments.slice(0, place).findLast((each) => each.labels?.length && each.step !== own.step);
  const [source, target] = [before?.labels ?? ["<start>"], own.labels];
  const title = `${source.join(" + ")} → ${target.join(" + ")}`;
  return h("a", { href: to("traces", { polarity: trace.polarity, pattern: title }) }, title);
}

function segmentItem(segment, place, run, movement, variant) {
  const has = segment.weight !== undefined && segment.weight !== null;
  const shade = has ? weightColour(segment.weight, run.weight_scale) : null;
  const after = segment.trained?.[variant];
  const moved = after && after.num_tokens ? (after.policy_logp - after.reference_logp) / after.num_tokens : null;
  const details = h("div", { class: "why", id: `why-${place}`, hidden: true }, decided(segment), numbers(segment, movement, run), tokens(segment, run));
  const button = h("button", { type: "button", class: "segment-head", "data-item": true, "aria-expanded": "false", "aria-controls": `why-${place}` },
    h("span", { class: "dot", style: { background: labelColour(segment.labels?.[0], run) } }),
    h("span", { class: "labels" }, segment.labels?.join(" + ") || "unlabelled"), " ",
    has ? h("span", { class: "w", style: { background: shade, color: inkOn(shade) } }, h("span", { class: "unseen" }, "weight "), `×${number(segment.weight)}`) : h("span", { class: "muted" }, "no weight"), " ",
    change(moved, run), " ",
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
  if (moved !== null) {
    const tone = movedColour(moved, run.weight_scale);
    item.style.setProperty("--moved", tone);
    item.style.setProperty("--moved-ink", inkOn(tone));
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
    "annotator B": segment.rule === "distilled" ? "not asked" : said(segment.labels_b, segment.confidences_b),
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

/** A sum of log-probabilities, whole and a token. */
const logp = (sum, tokens) => `${number(sum)}, ${number(sum / tokens, 3)} a token`;

function tokens(segment, run) {
  if (!segment.logps?.length) return null;
  const lowest = Math.min(...segment.logps, -1e-9);
  const after = Object.fromEntries(run.looked_at.filter(({ name }) => segment.trained?.[name]?.num_tokens).map(({ name, title }) => {
    const own = segment.trained[name];
    return [`after ${title}`, `${logp(own.policy_logp, own.num_tokens)} (${signed((own.policy_logp - own.reference_logp) / own.num_tokens, 3)}), KL ${number(own.kl / own.num_tokens, 3)} a token`];
  }));
  return h("div", {}, pairs({ "log-probability before": logp(segment.logp, segment.logps.length), ...after }, "Before and after training"),
    h("div", { class: "bars", role: "img", "aria-label": `Log-probability before training of ${segment.logps.length} tokens, the lowest ${number(lowest)}` },
      segment.logps.map((each) => h("span", { title: number(each, 3), style: { height: `${Math.max(2, (100 * each) / lowest)}%` } }))));
}

function reference(trace, run) {
  if (!trace.reference) return null;
  const shown = run.looked_at.filter(({ name }) => trace.trained[name]);
  return h("section", { "aria-labelledby": "reference" }, h("h2", { id: "reference" }, shown.length ? "Before and after training" : "Before training"),
    pairs({
      "log-probability of the completion": number(trace.reference.logp),
      "of its KL partner's behind this prompt": number(trace.reference.kl_logp),
    }),
    shown.length ? trainedTable(trace, shown) : h("p", { class: "muted" }, "What training made of it is not known, since this run was made with train.trace_logps: false. Set it to true in the train section of the config, or run ", h("code", {}, "mralign run --config CONFIG --only train --set train.trace_logps=true"), ": adapters that are there are not trained anew; it takes one forward pass over the traces for each trained variant."),
    h("p", {}, h("a", { href: to("trace", { id: trace.reference.partner }) }, "The KL partner")));
}

/** What each training made of the trace: of the whole completion, and of what is in no segment (tags, answer, end). */
function trainedTable(trace, shown) {
  const rows = shown.map(({ name, title }) => {
    const own = trace.trained[name];
    const inside = trace.segments.map((segment) => segment.trained[name]);
    const sum = (field) => inside.reduce((total, each) => total + each[field], 0);
    const rest = own.num_tokens - sum("num_tokens");
    const moved = own.policy_logp - own.reference_logp;
    const outside = moved - (sum("policy_logp") - sum("reference_logp"));
    return [`after ${title}`, number(own.policy_logp), signed(moved), signed(moved / own.num_tokens, 3), signed(own.implicit_reward), rest ? signed(outside / rest, 3) : "–", number(own.kl), number(own.kl / own.num_tokens, 3)];
  });
  const columns = ["", "log-probability", "change", "a token", "implicit reward", "outside the thinking, a token", "KL", "a token"];
  return [table("The completion after training, in nats", columns, rows),
    h("p", { class: "muted" }, "Implicit reward: the change with each token's weight (Eq. 9). KL: estimated from this trace's tokens, from the model before to the one after.")];
}

function questionDraws(trace) {
  const rows = trace.others.map((draw) => [`think-${draw.thinking_mode}, ${draw.draw}`, verdict(draw), outcomeTitle(draw.outcome), draw.answer || "–", count(draw.num_tokens)]);
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

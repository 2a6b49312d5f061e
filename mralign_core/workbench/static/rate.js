// Rating: rounds, and one segment or answer at a time, by keyboard. Nothing here says what anybody else said.
import { ask, save, to } from "./address.js";
import { count, fill, h, model, pairs } from "./dom.js";
import { Unsent } from "./unsent.js";

const CHOICE_KEYS = [..."123456789qwertyuiopasdfghjklzxcvbnm"];
const NO_LABEL = "no label";
const RATER = "mralign-rater";
const KINDS = { labels: "labels of segments", verdicts: "verdicts on answers" };
const CHOSEN = { random: "at random", disagreement: "where the annotators differ", pull: "by pull on the weights" };
/** What a round of a kind is of: its items, and what they are chosen by. */
const SIZES = { labels: ["segment", "trace"], verdicts: ["answer", "question"] };
const UNITS = { labels: "traces", verdicts: "questions" };
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const size = (kind, items, of) => `${plural(items, SIZES[kind][0])} of ${plural(of, SIZES[kind][1])}`;
const TITLES = { verdict: "Is the answer right?", truthful: "Is it truthful?", informative: "Is it informative?" };

export const post = (path, values) => ask(path, {}, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) });

/** Send a rating; where another page of the rater was ahead, say how far. */
async function sendRating(round, rater, rating) {
  try {
    return await post("rate/rating", { round, rater, rating });
  } catch (error) {
    if (error.status !== 409) throw error;
    const { ratings } = await ask("rate/round", { round, rater });
    throw Object.assign(error, { highest: Math.max(...ratings.map((each) => each.n)) });
  }
}

const say = (text) => { document.querySelector("#status").textContent = text; };

let current = null; // the sheet on the page

export async function showRate(asked, run) {
  current?.unsent.stop();
  current = null;
  if (!asked.round) return showRounds(run);
  if (!asked.rater) return askName(asked.round);
  localStorage.setItem(RATER, asked.rater);
  const found = await ask("rate/round", { round: asked.round, rater: asked.rater });
  current = new Sheet(found, asked.rater);
  return { title: `Rating ${KINDS[found.kind]}`, content: [current.element] };
}

// Rounds

async function showRounds(run) {
  const rounds = await ask("rate/rounds");
  const rows = rounds.map((round) => h("article", {},
    h("h2", {}, h("a", { href: to("rate", { round: round.name }), "data-item": true }, `${size(round.kind, round.items, round.of)}`)),
    h("p", { class: "facts" }, h("span", {}, KINDS[round.kind]), h("span", {}, round.run), h("span", {}, `chosen ${CHOSEN[round.choice.by]}${round.choice.again ? ", of what was rated before" : ""}, seed ${round.choice.seed}`), h("span", {}, `begun ${round.at} UTC`), h("span", {}, `round ${round.name}`)),
    h("ul", { class: "facts" }, Object.entries(round.raters).map(([rater, far]) => h("li", {},
      h("a", { href: to(far.finished ? "rating-results" : "rate", { round: round.name, rater }) }, `${rater}: ${far.finished ? "done, results" : `${far.done} of ${round.items}`}`))))));
  return { title: "Rating", content: [
    h("p", {}, "People label segments, or judge answers, without knowing what annotators, judges or other people said. The results are shown to who has gone through all items of a round."),
    beginForm(run, rounds),
    h("h2", {}, "Rounds"),
    rounds.length ? h("ol", { class: "cards", "aria-label": "Rounds" }, rows.map((row) => h("li", {}, row))) : h("p", { class: "muted" }, "There is none yet."),
  ] };
}

function beginForm(run, rounds) {
  const kinds = [["labels", run.has.includes("candidates")], ["verdicts", run.has.includes("scores")]].filter(([, there]) => there);
  const ways = Object.entries(CHOSEN).filter(([by]) => by === "random" || run.has.includes({ disagreement: "annotations", pull: "weights" }[by]));
  const problem = h("p", { class: "problem", role: "alert" });
  const unit = h("span"), told = h("p", { role: "status" }), unfinished = h("p");
  const form = h("form", { class: "filters", "aria-label": "Begin a round" },
    h("label", {}, "rate ", h("select", { name: "kind" }, kinds.map(([kind]) => h("option", { value: kind }, KINDS[kind])))),
    h("label", {}, "chosen ", h("select", { name: "by" }, ways.map(([by, title]) => h("option", { value: by }, title)))),
    h("label", { class: "number" }, unit, " ", h("input", { name: "num", type: "number", min: 1, max: 2000, value: 20, required: true })),
    h("label", { class: "number" }, "seed ", h("input", { name: "seed", type: "number", min: 0, value: 0, required: true })),
    h("label", {}, "your name ", nameInput()),
    h("label", { class: "check" }, h("input", { name: "again", type: "checkbox" }), "again, what I have rated before"),
    h("button", {}, "Begin"));
  const chosen = () => {
    const { kind, by, num, seed, rater, again } = Object.fromEntries(new FormData(form));
    return { kind, rater, choice: { by, num: Number(num), seed: Number(seed), again: Boolean(again) } };
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = chosen();
    problem.textContent = "";
    try {
      const { round } = await post("rate/begin", asked);
      go(to("rate", { round, rater: asked.rater }));
    } catch (error) { problem.textContent = error.message; }
  });
  const changed = () => {
    unit.textContent = UNITS[chosen().kind];
    fill(unfinished, goOnWith(rounds, chosen().rater));
    if (form.checkValidity() || (!chosen().rater && chosen().choice.num)) tellSize(told, chosen());
  };
  form.addEventListener("change", changed);
  changed();
  const leftOut = h("p", { class: "muted" }, "Left out of a new round are traces of which you have rated every segment, in whatever rounds, and questions of which you have rated every answer of a draw. Begin goes on with a round that you have not finished only where all you choose here is the same as then. Rated again, what you have rated tells how alike one person rates twice.");
  return h("section", { "aria-labelledby": "begin" }, h("h2", { id: "begin" }, "Begin a round"), form, told, problem, unfinished, leftOut);
}

let sizesAsked = 0;

/** How much there is to rate, before anybody begins. */
async function tellSize(told, asked) {
  const own = ++sizesAsked;
  told.textContent = "";
  let text;
  try {
    const found = await post("rate/size", asked);
    text = found.is_begun ? `You have begun this round, ${size(asked.kind, found.items, found.of)}: Begin goes on with it.` : `That is ${size(asked.kind, found.items, found.of)}${found.left_out ? `; ${plural(found.left_out, SIZES[asked.kind][1])} that you have rated left out` : ""}.`;
  } catch (error) { text = error.message; }
  if (own === sizesAsked) told.textContent = text;
}

/** Links to the rounds that a rater has begun and not finished. */
function goOnWith(rounds, rater) {
  const open = rounds.filter((round) => round.raters[rater] && !round.raters[rater].finished);
  if (!open.length) return null;
  const link = (round) => h("a", { href: to("rate", { round: round.name, rater }) }, `${size(round.kind, round.items, round.of)}, begun ${round.at} UTC (${count(round.raters[rater].done)} gone through)`);
  return [`Not finished by ${rater}: `, open.map((round, place) => [place ? "; " : "", link(round)])];
}

const go = (address) => document.dispatchEvent(new CustomEvent("workbench:go", { detail: address }));

function nameInput() {
  return h("input", { name: "rater", required: true, pattern: "[a-z][a-z0-9_]{0,31}", maxlength: 32, value: localStorage.getItem(RATER) ?? "", autocomplete: "off", spellcheck: "false",
    title: "a small letter, then small letters, digits and _; the others of this round see it when they are done" });
}

function askName(round) {
  const form = h("form", { class: "filters", "aria-label": "Who rates?" }, h("label", {}, "your name ", nameInput()), h("button", {}, "Rate"));
  form.addEventListener("submit", (event) => { event.preventDefault(); go(to("rate", { round, rater: new FormData(form).get("rater") })); });
  return { title: "Who rates?", content: [form] };
}

// One item at a time

class Sheet {
  constructor(round, rater) {
    this.round = round;
    this.rater = rater;
    this.keys = new Map(round.choices.map((choice, place) => [CHOICE_KEYS[place], choice]).filter(([key]) => key));
    this.unsent = new Unsent(`${round.name}:${rater}`, (rating) => sendRating(round.name, rater, rating), (state) => this.saved(state));
    const known = new Set(round.ratings.map((each) => `${each.n} ${each.item}`));
    this.log = [...round.ratings, ...this.unsent.pending.filter((each) => !known.has(`${each.n} ${each.item}`))];
    this.states = new Map(this.log.map((each) => [each.item, each]));
    this.finished = round.finished;
    this.problem = "";
    this.element = h("div", { "data-rating": true });
    this.at = Math.max(0, this.firstOpen());
    this.load();
    this.unsent.flush();
  }

  state(item) { return this.states.get(item) ?? { state: "cleared", said: {}, note: "" }; }
  isOpen(item) { return this.state(item).state === "cleared"; }
  firstOpen(from = 0) {
    const items = this.round.items, places = items.map((_, place) => (place + from) % items.length);
    return places.find((place) => this.isOpen(items[place].item)) ?? -1;
  }

  get item() { return this.round.items[this.at]; }

  /** Show the item with what was said of it before. */
  load(message = "") {
    const before = this.state(this.item.item);
    this.picked = { ...before.said };
    this.note = before.note;
    this.render();
    if (message) say(message);
  }

  add(rating) {
    const n = 1 + Math.max(0, ...this.log.map((each) => each.n), ...this.unsent.pending.map((each) => each.n));
    const whole = { n, said: {}, note: "", undoes: 0, ...rating };
    this.log.push(whole);
    this.states.set(whole.item, whole);
    this.unsent.add(whole);
  }

  /** Keep what is chosen, and go on to the next item that is open. */
  rate(state) {
    const { item, asked } = this.item;
    const missing = this.round.kind === "labels" ? !this.picked.label_1 : asked.some((column) => !this.picked[column]);
    if (state === "rated" && missing) return this.refuse("Choose first.");
    this.add({ item, state, said: state === "rated" ? this.picked : {}, note: this.note });
    const next = this.firstOpen(this.at);
    this.isOver = next < 0;
    if (next >= 0) this.at = next;
    this.load(this.isOver ? "All items are gone through." : `${state}. ${this.progress()}`);
    return undefined;
  }

  /** First what is chosen and not saved is dropped; then what was saved last is taken back. */
  undo() {
    if (this.isChosenAnew()) {
      this.picked = { ...this.state(this.item.item).said };
      this.render();
      this.refuse("What was chosen is dropped. Undo once more takes back what was saved last.");
      return undefined;
    }
    const done = [];
    for (const each of this.log) {
      if (each.undoes) done.splice(done.findIndex((other) => other.n === each.undoes), 1);
      else done.push(each);
    }
    const last = done.at(-1);
    if (!last) return this.refuse("There is nothing to undo.");
    const before = this.log.slice(0, this.log.indexOf(last)).findLast((each) => each.item === last.item);
    const { state, said, note } = before ?? { state: "cleared", said: {}, note: "" };
    this.add({ item: last.item, state, said, note, undoes: last.n });
    this.isOver = false;
    this.at = this.round.items.findIndex((each) => each.item === last.item);
    this.load(`Taken back. ${this.progress()}`);
    return undefined;
  }

  isChosenAnew() {
    const before = this.state(this.item.item).said;
    const columns = new Set([...Object.keys(this.picked), ...Object.keys(before)]);
    return !this.isOver && [...columns].some((column) => (this.picked[column] ?? "") !== (before[column] ?? ""));
  }

  move(by) {
    this.isOver = false;
    this.at = Math.max(0, Math.min(this.round.items.length - 1, this.at + by));
    this.load(this.progress());
  }

  pick(choice) {
    if (this.isOver) return;
    this.refuse("");
    if (choice.columns.length === 1) {
      if (!this.item.asked.includes(choice.columns[0])) return;
      this.picked = { ...this.picked, [choice.columns[0]]: choice.value };
    } else {
      const own = choice.columns.map((column) => this.picked[column]).filter((value) => value && value !== NO_LABEL);
      const next = own.includes(choice.value) ? own.filter((value) => value !== choice.value) : [...own, choice.value];
      if (next.length > choice.columns.length) { this.refuse("Two labels at most: take one back first."); return; }
      this.picked = Object.fromEntries(next.map((value, place) => [choice.columns[place], value]));
    }
    this.render();
    say(Object.values(this.picked).join(", ") || "nothing chosen");
  }

  pickNone() {
    if (this.round.kind !== "labels" || this.isOver) return;
    this.picked = this.picked.label_1 === NO_LABEL ? {} : { label_1: NO_LABEL };
    this.render();
    say(Object.values(this.picked).join(", ") || "nothing chosen");
  }

  refuse(text) {
    const place = this.element.querySelector(".refused");
    if (place) place.textContent = text;
  }

  saved({ pending, problem, reply }) {
    if (reply) this.finished = reply.finished;
    this.problem = problem;
    this.renderSaved(pending);
    if (!pending && this.isOver && reply?.finished) this.render();
  }

  progress() {
    const states = this.round.items.map((each) => this.state(each.item).state);
    const skipped = states.filter((state) => state === "skipped").length, done = states.filter((state) => state !== "cleared").length;
    return `${count(done)} of ${count(states.length)} gone through${skipped ? `, ${count(skipped)} skipped` : ""}`;
  }

  // Elements

  render() {
    const focus = document.activeElement?.dataset?.choice;
    fill(this.element, this.head(), this.isOver ? this.end() : this.body());
    this.renderSaved(this.unsent.pending.length);
    if (focus) this.element.querySelector(`[data-choice="${focus}"]`)?.focus();
    this.element.querySelector("[aria-current=step]")?.scrollIntoView({ block: "nearest" });
  }

  head() {
    const total = this.round.items.length, done = this.round.items.filter((each) => !this.isOpen(each.item)).length;
    return h("div", { class: "bar" }, h("progress", { max: total, value: done, "aria-label": "Gone through" }), h("p", { class: "progress" }, this.progress()),
      h("p", { class: "saved" }), h("p", {}, `${this.rater}, ${size(this.round.kind, total, this.round.of)}, round ${this.round.name}`));
  }

  renderSaved(pending) {
    const place = this.element.querySelector(".saved");
    if (!place) return;
    const waits = pending ? `${count(pending)} not saved yet, kept in this browser${this.problem ? `: ${this.problem}` : ""}` : "";
    place.textContent = [this.refusals(), waits].filter(Boolean).join(" ") || "All saved";
    place.classList.toggle("problem", Boolean(this.unsent.refused.length || (pending && this.problem)));
  }

  /** What the server does not take, which sending again would not change. */
  refusals() {
    const { refused } = this.unsent;
    if (!refused.length) return "";
    const { rating, problem } = refused[0];
    return `${count(refused.length)} refused, not saved, kept in this browser; number ${1 + this.round.items.findIndex((each) => each.item === rating.item)} of the items: ${problem}. Rate it anew, or load this page again to send it again.`;
  }

  body() {
    const { cells } = this.item;
    const isLabels = this.round.kind === "labels";
    const note = h("textarea", { id: "note", rows: 2, maxlength: 2000, oninput: (event) => { this.note = event.target.value; } });
    note.value = this.note;
    return h("div", { class: "rating" },
      h("section", { "aria-label": isLabels ? "Trace" : "Answer" },
        h("h2", {}, isLabels ? `Trace ${cells.trace}, segment ${cells.segment}` : `Answer ${this.at + 1}`),
        model(cells.question),
        isLabels ? this.trace() : this.answer()),
      h("section", { "aria-label": "What is it?", class: "choices" },
        this.groups(),
        isLabels ? this.button("0", "none fits", this.picked.label_1 === NO_LABEL, () => this.pickNone(), "write “no label”") : null,
        h("p", { class: "refused problem", role: "alert" }),
        h("label", { for: "note" }, "Note ", h("span", { class: "muted" }, "(key ", h("kbd", {}, "."), ")")), note,
        h("div", { class: "bar commands" },
          this.command("Enter", "Save, next", () => this.rate("rated")), this.command("-", "Skip", () => this.rate("skipped")), this.command("Backspace", "Undo", () => this.undo()),
          this.command("←", "Back", () => this.move(-1)), this.command("→", "Forward", () => this.move(1))),
        this.meaning()));
  }

  /** The whole trace, as the annotators see it: what was said of each segment is this rater's own. */
  trace() {
    const { trace } = this.item.cells;
    return h("ol", { class: "segments rated-trace" }, this.round.items.filter((each) => each.cells.trace === trace).map((each) => {
      const own = this.state(each.item), isCurrent = each === this.item;
      const said = own.state === "rated" ? Object.values(own.said).join(" + ") : own.state === "skipped" ? "skipped" : "";
      return h("li", { class: "segment", "aria-current": isCurrent ? "step" : null }, said ? h("p", { class: "own" }, said) : null, model(each.cells.text));
    }));
  }

  /** What is chosen, in words; folded, what raters are told, and all labels. */
  meaning() {
    const picked = Object.values(this.picked);
    const told = this.round.choices.filter((choice) => choice.tells);
    const details = h("details", { open: this.isTold, ontoggle: (event) => { this.isTold = event.target.open; } }, h("summary", {}, "What to go by"),
      h("p", { class: "about" }, this.round.about.replaceAll(/[`*]/g, "")), told.length ? pairs(Object.fromEntries(told.map((choice) => [choice.value, choice.tells])), "Labels") : null);
    return h("div", {}, h("p", { class: "meaning muted" }, told.filter((choice) => picked.includes(choice.value)).map((choice) => `${choice.value}: ${choice.tells}. `)), details);
  }

  answer() {
    const { reference_answers: references, incorrect_answers: incorrect, answer } = this.item.cells;
    return h("div", {}, pairs({ "reference answers": references, "incorrect answers": incorrect || null }, "For comparison"), h("div", { class: "to-judge" }, model(answer)));
  }

  groups() {
    const groups = new Map();
    for (const [place, choice] of this.round.choices.entries()) groups.set(choice.group, [...(groups.get(choice.group) ?? []), [CHOICE_KEYS[place], choice]]);
    return [...groups].filter(([, choices]) => this.item.asked.includes(choices[0][1].columns[0])).map(([group, choices]) => h("fieldset", {}, h("legend", {}, TITLES[group] ?? group),
      choices.map(([key, choice]) => this.button(key, choice.value, choice.columns.some((column) => this.picked[column] === choice.value), () => this.pick(choice), choice.tells))));
  }

  button(key, text, isPicked, onclick, tells = "") {
    return h("button", { type: "button", "aria-pressed": String(isPicked), "aria-keyshortcuts": key, "data-choice": key, title: tells, onclick }, key ? h("kbd", {}, key) : null, ` ${text}`);
  }

  command(key, text, onclick) {
    return h("button", { type: "button", onclick }, h("kbd", {}, key), ` ${text}`);
  }

  end() {
    const skipped = this.round.items.some((each) => this.state(each.item).state === "skipped");
    const link = this.finished ? h("a", { href: to("rating-results", { round: this.round.name, rater: this.rater }), "data-results": true }, "Results") : h("span", { class: "muted" }, "The results are here when all is saved.");
    return h("section", { "aria-label": "The end" }, h("h2", {}, "All items are gone through"),
      skipped ? h("p", {}, "Skipped ones can be rated still, and count for κ and rates until you first look at the results: ", h("button", { type: "button", onclick: () => this.toSkipped() }, "Go to the first skipped")) : null,
      h("p", {}, link), h("p", {}, sheetButton(this.round.name, this.rater), " ", this.command("Backspace", "Undo", () => this.undo())));
  }

  toSkipped() {
    this.isOver = false;
    this.at = this.round.items.findIndex((each) => this.state(each.item).state === "skipped");
    this.load(this.progress());
  }
}

/** Saves the ratings as the sheet that `mralign compare-annotators --sheet` or `judge-sheet --in` reads. */
export function sheetButton(round, rater) {
  return h("button", { type: "button", onclick: (event) => save("rate/sheet.csv", { round, rater }, `${round}-${rater}.csv`).catch((error) => { event.target.textContent = error.message; }) }, "Save as a filled sheet (CSV)");
}

const COMMANDS = {
  Enter: () => (current.isOver ? document.querySelector("[data-results]")?.click() : current.rate("rated")),
  "-": () => current.isOver || current.rate("skipped"),
  Backspace: () => current.undo(),
  ArrowLeft: () => current.move(-1),
  ArrowRight: () => current.move(1),
  0: () => current.pickNone(),
  ".": () => document.querySelector("#note")?.focus(),
};

document.addEventListener("keydown", (event) => {
  if (!current?.element.isConnected || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input, select, textarea")) return;
  if (event.key === "Enter" && event.target.matches("a[href], button:not([aria-pressed=true])")) return; // what has the focus does its own
  const choice = current.keys.get(event.key.toLowerCase());
  const action = COMMANDS[event.key] ?? (choice && (() => current.pick(choice)));
  if (!action) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // the workbench has other uses for some of these keys
  if (!event.repeat || event.key.startsWith("Arrow")) action();
}, { capture: true });

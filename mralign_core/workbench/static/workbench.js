// The pages of the workbench: which view an address shows, links between views, and keys.
import { ask, goOn, PREFIX, query, to } from "./address.js";
import { whenSchemeChanges } from "./colours.js";
import { fill, h } from "./dom.js";
import { showList } from "./lists.js";
import { showMoves, showOverview } from "./overview.js";
import { showQuestion } from "./question.js";
import { showRate } from "./rate.js";
import { showRatingResults } from "./rating_results.js";
import { showTrace } from "./trace.js";

/** View → what shows it: given the query and the run, a title and elements. */
const VIEWS = {
  "": showOverview,
  traces: (asked, run) => showList("traces", asked, run),
  draws: (asked, run) => showList("draws", asked, run),
  answers: (asked, run) => showList("answers", asked, run),
  moves: showMoves,
  trace: showTrace,
  question: showQuestion,
  rate: showRate,
  "rating-results": showRatingResults,
};
/** What the head links to: view → its name, and what a run must have for it. */
const HEAD = {
  "": ["Overview", ""],
  traces: ["Traces", "candidates"],
  moves: ["Moves", "annotations"],
  draws: ["Draws", "generations"],
  answers: ["Answers", "scores"],
  rate: ["Rating", ""],
};
const KEYS = {
  "j, k": "next, previous: item of a list, segment of a trace",
  "Enter": "open it",
  "/": "search",
  "n, p": "next, previous page",
  "c": "colour segments by label, by weight, by what training changed",
  "?": "these keys",
};

const main = document.querySelector("#main");
let run = null, runAddress = "", drawn = 0;

async function render() {
  const own = ++drawn;
  goOn();
  const view = location.pathname.slice(PREFIX.length);
  makeStale();
  try {
    if (runAddress !== to("")) run = await ask("run");
    runAddress = to("");
    if (!(view in VIEWS)) throw new Error(`there is no view ${view}`);
    const { title, content } = await VIEWS[view](query(), run);
    if (own !== drawn) return; // somebody has gone on meanwhile
    head(view);
    document.title = `${title} · ${run.title}`;
    fill(main, h("h1", {}, title), content);
    tell(title);
  } catch (error) {
    if (own !== drawn) return;
    head(view);
    document.title = "MR-ALIGN workbench";
    fill(main, h("h1", {}, "This can't be shown"), h("p", { class: "problem", role: "alert" }, error.message), h("p", {}, h("a", { href: to("") }, "Back to the overview")));
  } finally {
    if (own === drawn) main.removeAttribute("aria-busy");
  }
}

/** What the page before shows is not what the address says now: until that is there, none of it can be used but filters. */
function makeStale() {
  main.setAttribute("aria-busy", "true");
  for (const part of main.children) part.inert = !part.matches("form");
  const found = document.querySelector("#found");
  if (!found) return;
  found.textContent = "Searching…";
  tell("Searching…");
}

function head(view) {
  document.querySelector("#run").textContent = run ? `· ${run.title}` : "";
  const shown = Object.entries(HEAD).filter(([, [, needs]]) => run && (!needs || run.has.includes(needs)));
  fill(document.querySelector("#nav"),
    shown.map(([name, [title]]) => h("a", { href: to(name), "aria-current": name === view ? "page" : null }, title)));
}

/** Say something to those who don't see the page change. */
export function tell(text) {
  document.querySelector("#status").textContent = text;
}

/** Go to an address of the workbench without loading the page anew; at what is sorted, whoever sorts it stays, by its name. */
export function go(address, { replace = false, stays = "" } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", address);
  return render().then(() => {
    if (stays) document.querySelector(`[data-stays="${CSS.escape(stays)}"]`)?.focus({ preventScroll: true });
    else if (!replace) scrollTo(0, 0);
  });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (link.target || link.origin !== location.origin || !link.pathname.startsWith(PREFIX) || link.hash) return;
  event.preventDefault();
  go(link.href, { stays: link.dataset.stays });
});
document.addEventListener("workbench:go", (event) => go(event.detail));
addEventListener("popstate", render);
whenSchemeChanges(() => document.querySelector("[data-rating]") ?? render()); // a sheet has none of these colours, and what is not saved

function step(by) {
  const items = [...document.querySelectorAll("[data-item]")];
  if (!items.length) return;
  const at = items.indexOf(document.activeElement.closest?.("[data-item]") ?? null);
  const next = items[Math.max(0, Math.min(items.length - 1, at < 0 ? (by > 0 ? 0 : items.length - 1) : at + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

const ACTIONS = {
  j: () => step(1),
  k: () => step(-1),
  "/": () => document.querySelector("[type=search]")?.focus(),
  n: () => document.querySelector("main:not([aria-busy]) [rel=next]")?.click(),
  p: () => document.querySelector("main:not([aria-busy]) [rel=prev]")?.click(),
  c: () => {
    const colours = [...document.querySelectorAll("[data-by]")];
    colours[(colours.findIndex((each) => each.ariaPressed === "true") + 1) % colours.length]?.click();
  },
  "?": () => document.querySelector("#help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

document.querySelector("#keys").append(...Object.entries(KEYS).map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what))));
if (location.hash && !document.getElementById(location.hash.slice(1))) {
  // The link that a server prints holds its token; the door has read it, and it leaves the address bar.
  history.replaceState(null, "", location.pathname + location.search);
}
render();

// Addresses of views, and what is asked of the server: every view has an address, which says all that it shows.

export const PREFIX = "/mralign/view/";
const ABOUT_RUN = ["store", "endpoint", "run"];

/** The query of this page, without what says which run. */
export function query() {
  return Object.fromEntries([...new URLSearchParams(location.search)].filter(([name]) => !ABOUT_RUN.includes(name)));
}

function aboutRun() {
  return [...new URLSearchParams(location.search)].filter(([name]) => ABOUT_RUN.includes(name));
}

/** The address of the run's report, shown by the same server. */
export function toReport(artifact) {
  const store = aboutRun().filter(([name]) => name !== "run");
  return `/mralign/artifacts/${artifact}/report.html?${new URLSearchParams(store)}`;
}

function search(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return new URLSearchParams([...aboutRun(), ...given]).toString();
}

/** The address of a view of the same run. */
export function to(view, values = {}) {
  return `${PREFIX}${view}?${search(values)}`;
}

function authorised() {
  // The door keeps the token where Prefect's UI looks for it, and no cookie has it.
  return { Authorization: `Basic ${localStorage.getItem("prefect-password")}` };
}

let asking = new AbortController();

/** Drop what the page before asked for and is still waited for: the server then ends its search. */
export function goOn() {
  asking.abort();
  asking = new AbortController();
}

async function reply(path, values, options) {
  const signal = options?.method ? null : asking.signal; // what writes is not taken back
  const found = await fetch(`${PREFIX}api/${path}?${search(values)}`, { cache: "no-store", signal, ...options, headers: { ...authorised(), ...options?.headers } });
  if (found.ok) return found;
  const told = await found.text();
  let problem = told;
  try { problem = JSON.parse(told).problem ?? told; } catch { /* not JSON: told as it is */ }
  const text = found.status === 401 ? "This browser has no key to this server: open the link that it printed." : problem;
  throw Object.assign(new Error(text), { status: found.status });
}

/** What the server says, as JSON. */
export async function ask(path, values = {}, options = undefined) {
  return (await reply(path, values, options)).json();
}

/** Save what the server says as a file; going on to another page does not end it. */
export async function save(path, values, name) {
  const content = await (await reply(path, values, { signal: null })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

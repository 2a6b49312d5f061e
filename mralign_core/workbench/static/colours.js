// One meaning a colour, as in the report: macro-strategies, polarities, and weights from orange over white (of dark pages, dark) to blue.

const channels = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));

function luminance(hex) {
  const [r, g, b] = channels(hex).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Black or white, whichever reads better. */
export function inkOn(hex) {
  const light = luminance(hex);
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}

const DARK = matchMedia("(prefers-color-scheme: dark)");
const DARK_NEUTRAL = "#2a313c";

/** Colours change with the scheme: what has them is drawn anew. */
export function whenSchemeChanges(draw) {
  DARK.addEventListener("change", draw);
}

/** A scale's colours in this scheme: on dark pages white would glare, and what tells nothing is dark too. */
function inScheme(colours) {
  return DARK.matches ? [colours[0], DARK_NEUTRAL, colours.at(-1)] : colours;
}

/** The colour of a weight: that of the page, white or dark, is of a move that tells nothing. */
export function weightColour(weight, scale) {
  const tone = scale.is_log ? Math.log(Math.max(weight, 1e-9)) : weight - scale.neutral;
  const colours = inScheme(scale.colours);
  const place = ((Math.max(-1, Math.min(1, tone)) + 1) / 2) * (colours.length - 1);
  const [low, high] = [Math.floor(place), Math.ceil(place)].map((at) => channels(colours[at]));
  const mixed = low.map((value, at) => Math.round(value + (high[at] - value) * (place - Math.floor(place))));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

const MOST_MOVED = 0.5; // nats a token that have the full colour

/** The colour of a change in log-probability, in nats a token: neutral where training changed nothing. */
export function movedColour(moved, scale) {
  return weightColour(moved / MOST_MOVED, { ...scale, is_log: false, neutral: 0 });
}

/** Label → its colour, that of its macro-strategy. */
export function labelColour(label, run) {
  return run.labels.find((each) => each.name === label)?.colour ?? "#9aa3ad";
}

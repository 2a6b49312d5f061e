// One meaning a colour, as in the report: macro-strategies, polarities, and weights from orange over white to blue.

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

/** The colour of a weight: white is that of a move that tells nothing. */
export function weightColour(weight, scale) {
  const tone = scale.is_log ? Math.log(Math.max(weight, 1e-9)) : weight - scale.neutral;
  const place = ((Math.max(-1, Math.min(1, tone)) + 1) / 2) * (scale.colours.length - 1);
  const [low, high] = [Math.floor(place), Math.ceil(place)].map((at) => channels(scale.colours[at]));
  const mixed = low.map((value, at) => Math.round(value + (high[at] - value) * (place - Math.floor(place))));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

const MOST_MOVED = 0.5; // nats a token that have the full colour

/** The colour of a change in log-probability, in nats a token: white where training changed nothing. */
export function movedColour(moved, scale) {
  return weightColour(moved / MOST_MOVED, { ...scale, is_log: false, neutral: 0 });
}

/** Label → its colour, that of its macro-strategy. */
export function labelColour(label, run) {
  return run.labels.find((each) => each.name === label)?.colour ?? "#9aa3ad";
}

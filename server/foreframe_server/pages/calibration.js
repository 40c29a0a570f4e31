// What a calibration says of a prediction's spread: up to where it is usual, and how wrong the frames may be.
// Takes the `uncertainty` of an answer, whose `calibration` may be missing.

import { h, quantity } from "./ui.js";

const AND = new Intl.ListFormat("en");

/** The spread that is usual, as a chart's series; none without a calibration. */
export function usualSpread({ calibration } = {}) {
  return calibration ? [{ name: "usual at most", kind: "usual", values: calibration.line_per_frame }] : [];
}

/** The error that is usual where members spread so, as a chart's series; none where it is not known. */
export function usualError({ calibration } = {}) {
  if (!calibration?.error_per_frame) return [];
  return [{ name: `error at most (${shareOf(calibration)})`, kind: "bound", values: calibration.error_per_frame }];
}

/** A verdict in a sentence or two, for under the chart; empty where nothing spreads. */
export function verdictWords(uncertainty) {
  if (uncertainty.spread_per_frame.length === 0) return "";
  const words = uncertainty.calibration && WORDS[trustOf(uncertainty)];
  return words ? words(uncertainty) : uncalibratedWords(uncertainty);
}

/** A verdict in a few words: "caution, 5 frames trusted". */
export function verdictText({ verdict, trusted_horizon: trusted }) {
  if (!Number.isFinite(trusted)) return verdict;
  return `${verdict}, ${trusted === 0 ? "no frame" : framesOf(trusted)} trusted`;
}

/** A verdict in a few words, in its colour. */
export const verdictMark = (uncertainty) =>
  h("span", { "data-trust": trustOf(uncertainty) }, verdictText(uncertainty));

const WORDS = {
  all: ({ calibration }) =>
    `Members spread no more than in ${shareOf(calibration)} of held-out recordings. A wrong picture may do so too.`,
  some: (uncertainty) => `${wideFrames(uncertainty)} more than ${shareOf(uncertainty.calibration)} of held-out ` +
    `recordings do. ${framesOf(uncertainty.trusted_horizon)} trusted.`,
  none: (uncertainty) => `Members spread more than ${shareOf(uncertainty.calibration)} of held-out recordings do, ` +
    `${isWideOnwards(uncertainty) ? "from the first frame on" : "at the first frame already"}. No frame is trusted.`,
};

function uncalibratedWords({ verdict, trusted_horizon: trusted }) {
  if (Number.isFinite(trusted)) return `Trusted for ${framesOf(trusted)}.`;
  return `The spread is ${verdict}: where members disagree, not an error bar. There is no trusted horizon.`;
}

/** Which frames may be trusted: "all", "some", "none", or "unknown". */
function trustOf({ spread_per_frame: { length }, trusted_horizon: trusted }) {
  if (!Number.isFinite(trusted)) return "unknown";
  if (trusted === 0) return "none";
  return trusted < length ? "some" : "all";
}

/** "Frames after 5 spread", or the frames by number where later ones are usual again. */
function wideFrames(uncertainty) {
  const wide = wideOf(uncertainty);
  if (wide.length === 1) return `Frame ${wide[0]} spreads`;
  if (isWideOnwards(uncertainty)) return `Frames after ${uncertainty.trusted_horizon} spread`;
  return `Frames ${AND.format(wide.map(String))} spread`;
}

/** The frames that pass their line, from the first that is not trusted. */
function wideOf({ spread_per_frame: spread, calibration: { line_per_frame: line }, trusted_horizon: trusted }) {
  return spread.map((_, index) => index + 1)
    .filter((frame) => frame === trusted + 1 || (frame > trusted && spread[frame - 1] > line[frame - 1]));
}

function isWideOnwards(uncertainty) {
  return wideOf(uncertainty).length === uncertainty.spread_per_frame.length - uncertainty.trusted_horizon;
}

const shareOf = ({ coverage }) => quantity(100 * coverage, "%");

const framesOf = (count) => `${count} ${count === 1 ? "frame" : "frames"}`;

// Draws what a link does: a plot of its speed, and a map of the image.

import { BARS, CELLS } from "./activity.js";
import { setText } from "./configurations.js";
import { bytes, duration, rate } from "./format.js";

/** @typedef {import("./activity.js").Activity} Activity */

const COLUMNS = 64;
const PLOT_HEIGHT = 40;
/** Bytes a second: below it the plot is no taller. */
const LEAST_TOP = 100_000;
/** Milliseconds without a read after which the machine counts as idle. */
const IDLE_MS = 5000;

export class ActivityCard {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    const part = (/** @type {string} */ name) =>
      /** @type {HTMLElement} */ (root.querySelector(`[data-part=${name}]`));
    this.plot = part("plot");
    this.bars = part("bars");
    this.top = part("top");
    this.map = part("map");
    this.squares = ["some", "all", "now"].map((name) => ({ name, path: part(name) }));
    this.share = part("share");
    this.reading = part("reading");
    part("rest").setAttribute("d", squares(Array(CELLS).fill("rest"), "rest"));
  }

  /**
   * @param {Activity | null} activity
   * @param {boolean} active whether the machine can read just now
   * @param {number} now on nbd.js's clock
   */
  render(activity, active, now) {
    this.root.hidden = activity === null;
    if (activity === null) return;
    this.#renderPlot(activity, active ? now : activity.time);
    this.#renderMap(activity, active ? now : Number.POSITIVE_INFINITY);
    setText(this.reading, reading(activity, active, now));
  }

  /** @param {Activity} activity @param {number} now */
  #renderPlot(activity, now) {
    const series = activity.series(now);
    const highest = Math.max(...series);
    const top = Math.max(LEAST_TOP, highest);
    const heights = series.map((value) => (value / top) * PLOT_HEIGHT);
    const bars = heights.map((height, x) => (height > 0 ? bar(x, Math.max(1, height)) : ""));
    this.bars.setAttribute("d", bars.join(""));
    setText(this.top, `at most ${rate(highest)}`);
    const label = `Speed over the last three minutes: ${rate(activity.rate(now))} now, at most ${rate(highest)}`;
    this.plot.setAttribute("aria-label", label);
  }

  /** @param {Activity} activity @param {number} now */
  #renderMap(activity, now) {
    const cells = activity.cells(now);
    for (const { name, path } of this.squares) path.setAttribute("d", squares(cells, name));
    const share = percent(activity.share());
    setText(this.share, `${share} of ${bytes(activity.size)}`);
    this.map.setAttribute("aria-label", `Map of the image: the machine has read ${share} of it`);
  }
}

/**
 * @param {Pick<Activity, "lastRead">} activity
 * @param {boolean} active whether the machine can read just now
 * @param {number} now on nbd.js's clock
 * @returns {string} what the machine reads, or read last
 */
export function reading({ lastRead }, active, now) {
  if (lastRead === null) return active ? "The machine has read nothing yet." : "Nothing was read.";
  const where = `${bytes(lastRead.length)} at ${bytes(lastRead.offset)}`;
  const ago = now - lastRead.time;
  if (!active) return `The last read was of ${where}.`;
  return ago < IDLE_MS ? `Reading ${where}.` : `Idle. Last read ${duration(ago)} ago: ${where}.`;
}

/** @param {number} share @returns {string} 100% is for what is whole, and 0% for nothing at all */
function percent(share) {
  if (share > 0 && share < 0.01) return "under 1%";
  return `${share === 1 ? 100 : Math.min(99, Math.floor(share * 100))}%`;
}

/** @param {number} x @param {number} height @returns {string} of a path in the plot, which is BARS wide */
function bar(x, height) {
  const left = Math.min(x, BARS - 1) + 0.1;
  return `M${left} ${PLOT_HEIGHT}v${-height.toFixed(2)}h.8v${height.toFixed(2)}z`;
}

/** @param {string[]} cells @param {string} name @returns {string} the path of all cells that are so */
function squares(cells, name) {
  let path = "";
  cells.forEach((cell, index) => {
    if (cell !== name) return;
    path += `M${(index % COLUMNS) + 0.08} ${Math.floor(index / COLUMNS) + 0.08}h.84v.84h-.84z`;
  });
  return path;
}

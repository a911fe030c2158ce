// How fast now: the mean over the last few seconds of a counter that only grows.

const WINDOW_MS = 3000;
// The first requests after a start arrive in a burst; over a shorter time they would be no measure.
const LEAST_SPAN_MS = 1000;

export class RateMeter {
  constructor() {
    /** @type {{time: number, total: number}[]} oldest first */
    this.samples = [];
  }

  /**
   * @param {number} time milliseconds on a clock that never goes back
   * @param {number} total bytes counted so far
   */
  add(time, total) {
    this.samples.push({ time, total });
    this.#forget(time);
  }

  /** @param {number} now on the same clock @returns {number} bytes a second */
  rate(now) {
    this.#forget(now);
    const first = this.samples[0];
    const last = this.samples[this.samples.length - 1];
    if (!first) return 0;
    const span = Math.min(Math.max(now - first.time, LEAST_SPAN_MS), WINDOW_MS);
    return ((last.total - first.total) * 1000) / span;
  }

  /**
   * Keeps one sample at or before the window's begin: the growth inside the window is counted from it.
   * @param {number} now
   */
  #forget(now) {
    while (this.samples.length > 1 && this.samples[1].time <= now - WINDOW_MS) this.samples.shift();
  }
}

/** @module */

/**
 * While the server holds a session whose link was lost: when to try again, and until when. Knows
 * nothing of links.
 *
 * Times are those of the wall clock. It goes on while a machine sleeps, which others do not.
 */

/** Seconds that a session is held where the server does not say. */
const DEFAULT_HOLD = 300;

/** Milliseconds before the next attempt, at least and at most. */
const SHORTEST = 250;
const LONGEST = 10_000;

/** Milliseconds after which a link that serves was no mere attempt: patience begins anew. */
const STEADY = 10_000;

/** Milliseconds by which the server may notice a loss later than we last heard of it. */
const LATER_NOTICED = 15_000;

/**
 * @typedef {object} HoldListener
 * @property {() => void} retry it is time for another attempt
 * @property {(secondsLeft: number) => void} tell once a second
 * @property {() => void} expired the server has given up by now; nothing follows
 */

/**
 * @param {number} failures attempts in a row that failed, from 0
 * @param {() => number} [random] in [0, 1)
 * @returns {number} milliseconds before the next: 250 to 10,000, all the rest by chance, so that
 *   pages which lost their server together do not return together
 */
export function backoff(failures, random = Math.random) {
  const ceiling = Math.min(LONGEST, SHORTEST * 2 ** (failures + 1));
  return SHORTEST + random() * (ceiling - SHORTEST);
}

/**
 * @param {unknown} said `hold` of the server's state
 * @returns {number} seconds
 */
export function holdSeconds(said) {
  return typeof said === "number" && said >= 0 ? said : DEFAULT_HOLD;
}

export class Hold {
  #listener;
  #seconds = 0;
  #deadline = 0;
  #failures = 0;
  #servedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #next;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock;

  /** @param {HoldListener} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  get secondsLeft() {
    const left = Math.ceil((this.#deadline - Date.now()) / 1000);
    return Math.min(this.#seconds, Math.max(0, left));
  }

  /**
   * A link that served was lost.
   *
   * @param {number} heardAt when it was heard last, in milliseconds since 1970
   * @param {number} seconds that the server waits, more than 0
   */
  begin(heardAt, seconds) {
    if (Date.now() - this.#servedAt >= STEADY) {
      this.#failures = 0;
    }
    this.#seconds = seconds;
    this.#deadline = heardAt + seconds * 1000 + LATER_NOTICED;
    this.#clock = setInterval(() => this.#tick(), 1000);
    this.tryLater();
  }

  /** An attempt failed, or the link was lost: the next one follows. */
  tryLater() {
    clearTimeout(this.#next);
    this.#next = setTimeout(() => this.#try(), backoff(this.#failures));
    this.#failures += 1;
  }

  /** There is reason to think that an attempt would succeed now. */
  tryNow() {
    clearTimeout(this.#next);
    this.#try();
  }

  /** A link serves again. */
  served() {
    this.stop();
    this.#servedAt = Date.now();
  }

  stop() {
    clearTimeout(this.#next);
    clearInterval(this.#clock);
    this.#next = undefined;
    this.#clock = undefined;
  }

  #try() {
    if (!this.#expire()) {
      this.#listener.retry();
    }
  }

  #tick() {
    if (!this.#expire()) {
      this.#listener.tell(this.secondsLeft);
    }
  }

  /** @returns {boolean} whether it is over */
  #expire() {
    const over = Date.now() >= this.#deadline;
    if (over) {
      this.stop();
      this.#listener.expired();
    }
    return over;
  }
}

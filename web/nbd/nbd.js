/**
 * Serves a disk image from a browser tab: an NBD server at the page's end of a WebSocket.
 *
 * @example
 * const server = new NBDServer("/nbd/0", file, {});
 * server.addEventListener("state", (event) => console.log(event.detail.phase));
 * server.start();
 *
 * @module
 */

import { newSessionId, socketAddress, takesSessions, withSession } from "./address.js";
import { IDLE } from "./engine.js";
import { run } from "./host.js";
import { openImage } from "./image.js";
import { ImageError } from "./image-error.js";
import { describeChange } from "./log.js";

export { ImageError };

/** @typedef {import("./engine.js").State} State */
/** @typedef {import("./engine.js").EndError} EndError */
/** @typedef {import("./engine.js").Held} Held */
/** @typedef {import("./engine.js").Keep} Keep */
/** @typedef {import("./engine.js").LastRead} LastRead */
/** @typedef {import("./engine.js").Range} Range */
/** @typedef {import("./image.js").CustomImage} CustomImage */
/** @typedef {import("./image.js").Image} Image */
/** @typedef {import("./link.js").LinkAddress} LinkAddress */

/**
 * @typedef {object} Options
 * @property {boolean | string} [session] whether the link is of version 1, with messages beside
 *   NBD's bytes and a session that has an ID: true makes one up, a string of 32 hexadecimal digits
 *   is one; false is a plain link. By default true where the endpoint's path ends in /nbd/NAME
 * @property {boolean} [takeover] take the session from the page of the same user that serves the
 *   same image elsewhere
 * @property {string} [token] sent as the sole subprotocol
 * @property {string} [name] of the image; by default its own
 * @property {number | null} [modified] milliseconds since 1970; by default the file's own
 * @property {number} [cache] bytes of the image that are kept in memory at most, so that what is
 *   read in a row or nearby is not read from the file piece by piece; 0: none. By default 100 MiB.
 *   Less than 9 MiB is for short reads alone
 * @property {boolean} [worker] false: everything runs on this thread
 * @property {typeof WebSocket} [WebSocket] used instead of the global one, on this thread
 */

/**
 * One image, offered to one server. A version 1 link that is lost is followed by others, for as long
 * as the server holds the session; a plain link never is. It tells what happens by `state` events, whose `detail` is a
 * {@link State}; `state` holds the latest.
 */
export class NBDServer extends EventTarget {
  /**
   * Called by start().
   *
   * @type {(() => void) | null}
   */
  socketStarted = null;

  /**
   * Called once for each start(), at the end, with the WebSocket's close code, or 1006 where it
   * failed without one.
   *
   * @type {((code: number) => void) | null}
   */
  socketClosed = null;

  /**
   * Called when the image can't be read, and was readable before.
   *
   * @type {(() => void) | null}
   */
  errorReadingFile = null;

  /**
   * Called with a line of text for each change worth telling; never for a request.
   *
   * @type {((message: string) => void) | null}
   */
  onlog = null;

  /**
   * The latest, as its event has told it.
   *
   * @type {Readonly<State>}
   */
  state = IDLE;

  /** @type {Options} */
  #options;
  /** @type {import("./host.js").Run | null} */
  #run = null;
  /** Counts start() and stop(), so that what was begun before knows itself outdated. */
  #turn = 0;
  #letSleep = () => {};
  #stopListening = () => {};

  /**
   * Never throws, and does nothing before start().
   *
   * @overload
   * @param {string | URL} endpoint a WebSocket's address; relative ones are the page's
   * @param {Image | null | undefined} image
   * @param {Options} options
   */
  /**
   * The form that webui-vue uses: a plain link.
   *
   * @overload
   * @param {string | URL} endpoint
   * @param {Image | null | undefined} image
   * @param {string | number | null} [id] the caller's own
   * @param {string} [token] sent as the sole subprotocol
   */
  /**
   * @param {string | URL} endpoint
   * @param {Image | null | undefined} image
   * @param {Options | string | number | null} [options]
   * @param {string} [token]
   */
  constructor(endpoint, image, options, token) {
    super();
    const isOptions = typeof options === "object" && options !== null;
    /** As it was given; what start() connects to. */
    this.endpoint = endpoint;
    /** As it was given; what start() serves. */
    this.image = image;
    this.#options = isOptions ? { ...options } : { session: false, token };
    /**
     * The caller's own; nothing is done with it.
     *
     * @type {string | number | null | undefined}
     */
    this.id = isOptions ? undefined : options;
    /** The session's ID; null on a plain link. */
    this.session = chooseSession(endpoint, this.#options.session);
    this.#bindMethods();
  }

  /** Begins to serve. Ignored while it does; begins anew, with the same session ID, after an end. */
  start() {
    if (this.state.phase !== "idle" && this.state.phase !== "ended") {
      return;
    }
    this.#turn += 1;
    const turn = this.#turn;
    this.#run = null;
    this.#letSleep = stayAwake();
    this.#stopListening = onAwakening(() => this.#run?.wake());
    this.#enter({ ...IDLE, phase: "connecting" });
    this.#serve(turn);
  }

  /** Ends in order, which detaches the disk. The state "ended" follows. */
  stop() {
    if (this.#run !== null) {
      this.#run.stop();
    } else if (this.state.phase === "connecting") {
      this.#turn += 1;
      this.#enter({ ...this.state, phase: "ended" });
    }
  }

  /**
   * Calls the listener at each change of `state`.
   *
   * @overload
   * @param {"state"} type
   * @param {(event: CustomEvent<State>) => void} listener
   * @param {boolean | AddEventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * There are no other events; other types are taken as every EventTarget takes them.
   *
   * @overload
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} listener
   * @param {boolean | AddEventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * @param {string} type
   * @param {any} listener
   * @param {boolean | AddEventListenerOptions} [options]
   */
  addEventListener(type, listener, options) {
    super.addEventListener(type, listener, options);
  }

  /**
   * Vue's reactive() calls methods on a Proxy of this object, where neither private members nor
   * those of an EventTarget can be reached. Bound, they run on the object itself.
   */
  #bindMethods() {
    const { start, stop, addEventListener, removeEventListener, dispatchEvent } = this;
    this.start = start.bind(this);
    this.stop = stop.bind(this);
    this.addEventListener = addEventListener.bind(this);
    this.removeEventListener = removeEventListener.bind(this);
    this.dispatchEvent = dispatchEvent.bind(this);
  }

  /** @param {number} turn */
  async #serve(turn) {
    const { token, worker = true, cache, WebSocket: Socket } = this.#options;
    try {
      const { takeover } = this.#options;
      const protocols = token ? [token] : [];
      const address = { ...linkTo(this.endpoint, this.session, takeover), protocols };
      const source = await openImage(this.image, this.#options);
      if (turn === this.#turn) {
        this.#begin(turn, { address, source, worker, cache: usableCache(cache), Socket });
      }
    } catch (error) {
      this.#follow(turn, { ...this.state, phase: "ended", error: asEndError(error) });
    }
  }

  /**
   * @param {number} turn
   * @param {import("./host.js").Job} job
   */
  #begin(turn, job) {
    const begun = run(job, (state) => this.#follow(turn, state));
    if (turn === this.#turn) {
      this.#run = begun;
    } else {
      // A listener has called stop() meanwhile.
      begun.stop();
    }
  }

  /**
   * @param {number} turn
   * @param {State} state
   */
  #follow(turn, state) {
    if (turn === this.#turn) {
      this.#enter(state);
    }
  }

  /** @param {State} state */
  #enter(state) {
    const before = this.state;
    this.state = Object.freeze(state);
    if (state.phase === "ended") {
      this.#letSleep();
      this.#stopListening();
    }
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
    this.#callBack(before, state);
  }

  /**
   * @param {State} before
   * @param {State} now
   */
  #callBack(before, now) {
    for (const line of describeChange(before, now, String(this.endpoint))) {
      attempt(() => this.onlog?.(line));
    }
    if (now.phase === "connecting" && before.phase !== "connecting") {
      attempt(() => this.socketStarted?.());
    }
    if (isUnreadable(now) && !isUnreadable(before)) {
      attempt(() => this.errorReadingFile?.());
    }
    if (now.phase === "ended" && before.phase !== "ended") {
      const code = now.closeCode ?? (now.error === null ? 1000 : 1006);
      attempt(() => this.socketClosed?.(code));
    }
  }
}

export default NBDServer;

/**
 * @param {unknown} cache
 * @returns {number | undefined} the default, where what was given is no amount of bytes
 */
function usableCache(cache) {
  return typeof cache === "number" && cache >= 0 ? cache : undefined;
}

/**
 * @param {string | URL} endpoint
 * @param {boolean | string | undefined} wanted
 * @returns {string | null} the session's ID
 */
function chooseSession(endpoint, wanted) {
  if (typeof wanted === "string") {
    return wanted;
  }
  try {
    const address = socketAddress(endpoint, globalThis.location?.href);
    const given = address.searchParams.get("session");
    return (wanted ?? takesSessions(address)) ? (given ?? newSessionId()) : null;
  } catch {
    // start() will tell what is wrong with the endpoint.
    return null;
  }
}

/**
 * @param {string | URL} endpoint
 * @param {string | null} session
 * @param {boolean} [takeover]
 * @returns {Pick<LinkAddress, "url" | "laterUrl" | "messages">}
 */
function linkTo(endpoint, session, takeover) {
  const address = socketAddress(endpoint, globalThis.location?.href);
  if (session === null) {
    return { url: address.href, messages: false };
  }
  // What was taken over once is ours: a later link must not take it from somebody else.
  return {
    url: withSession(address, session, takeover).href,
    laterUrl: withSession(address, session).href,
    messages: true,
  };
}

/**
 * @param {unknown} error
 * @returns {EndError}
 */
function asEndError(error) {
  const { message: reason } = /** @type {Error} */ (error);
  const code = error instanceof ImageError ? error.code : "bad-address";
  return { code, reason, closeCode: null };
}

/** @param {State} state */
function isUnreadable(state) {
  return state.trouble !== null || /image/.test(state.error?.code ?? "");
}

/** Events of a window that make another look at the link worth while; Workers get none of them. */
const AWAKENINGS = ["online", "pageshow", "visibilitychange"];

/**
 * @param {() => void} awoke
 * @returns {() => void} stops listening
 */
function onAwakening(awoke) {
  if (typeof globalThis.addEventListener !== "function") {
    return () => {};
  }
  for (const type of AWAKENINGS) {
    globalThis.addEventListener(type, awoke);
  }
  return () => {
    for (const type of AWAKENINGS) {
      globalThis.removeEventListener(type, awoke);
    }
  };
}

/**
 * Calls what the page gave. A mistake there is reported as one, and the disk goes on.
 *
 * @param {() => void} callback
 */
function attempt(callback) {
  try {
    callback();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/**
 * Browsers freeze hidden tabs; one that holds a lock is spared. Insecure contexts have no locks.
 *
 * @returns {() => void} lets go
 */
function stayAwake() {
  const locks = globalThis.navigator?.locks;
  if (locks === undefined) {
    return () => {};
  }
  /** @type {() => void} */
  let release = () => {};
  const released = new Promise((resolve) => {
    release = () => resolve(undefined);
  });
  locks.request(`nbd.js ${newSessionId()}`, () => released).catch(() => {});
  return release;
}

/** @module */

/**
 * @typedef {"unreachable" | "lost" | "silent" | "protocol" | "not-allowed" | "no-configuration"
 *   | "busy" | "other-image" | "superseded" | "too-many" | "closed"} LinkErrorCode
 */

/**
 * @typedef {object} LinkError
 * @property {LinkErrorCode} code
 * @property {string} reason for people
 */

/**
 * @typedef {object} LinkEnd
 * @property {number | null} closeCode the WebSocket's; null where it never came to one
 * @property {LinkError | null} error null: closed on purpose, by either side
 */

/**
 * @typedef {object} LinkListener
 * @property {() => void} opened
 * @property {(bytes: Uint8Array) => void} data
 * @property {(message: Record<string, unknown>) => void} message of a version 1 link
 * @property {(end: LinkEnd) => void} closed once, and nothing after it
 */

/**
 * @typedef {object} LinkAddress
 * @property {string} url
 * @property {string} [laterUrl] for the links that follow the first; by default the same
 * @property {string[]} protocols subprotocols
 * @property {boolean} messages whether text messages are exchanged (version 1), or NBD bytes alone
 */

/** @typedef {typeof WebSocket} SocketClass the WebSocket of browsers, or one with its interface */

/** Close codes of ours; the server sees in them a link that was lost, not a session that ended. */
const CLOSE_PROTOCOL = 4400;
const CLOSE_SILENT = 4408;

/** Seconds without a byte after which a version 1 link is lost; a beat comes every 5 s. */
const SILENCE = 15;

/** Seconds of silence that a link is granted which is doubted: a beat has to come in that time. */
const DOUBTED_SILENCE = 6;

/** Milliseconds between two looks at the clock that tell of a sleep. */
const SLEEP = 5000;

/** Milliseconds that the other side has to answer a close. */
const CLOSE_PATIENCE = 2000;

/** Milliseconds between two looks at what is still to be sent: a WebSocket does not tell. */
const DRAIN_INTERVAL = 10;

/** Longest text message that is looked at, in UTF-16 units. */
const MAX_TEXT = 65536;

/** @type {ReadonlyMap<number, LinkError>} what the server means, where it gives no reason */
const REFUSALS = new Map([
  [4401, refusal("not-allowed", "The server does not allow it: sign in again.")],
  [4404, refusal("no-configuration", "The server has no such configuration.")],
  [4409, refusal("busy", "The configuration is in use.")],
  [4410, refusal("other-image", "This is another image than the one that the session has.")],
  [4412, refusal("superseded", "The session was taken over from elsewhere.")],
  [4429, refusal("too-many", "The server has too many connections.")],
]);

/** One WebSocket, from its opening to its end. Knows nothing of NBD. */
export class Link {
  #listener;
  #messages;
  #socket;
  #opened = false;
  #closing = false;
  #over = false;
  #silentSeconds = 0;
  #heardAt = Date.now();
  #lookedAt = Date.now();
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #patience;

  /**
   * @param {Pick<LinkAddress, "url" | "protocols" | "messages">} address
   * @param {LinkListener} listener
   * @param {SocketClass} Socket
   * @throws {SyntaxError} for an address or a subprotocol that no WebSocket takes
   */
  constructor({ url, protocols, messages }, listener, Socket) {
    this.#listener = listener;
    this.#messages = messages;
    this.#socket = new Socket(url, protocols);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => this.#open();
    this.#socket.onmessage = (event) => this.#receive(event.data);
    // An error is always followed by a close, which says more.
    this.#socket.onerror = () => {};
    this.#socket.onclose = (event) => this.#end(event.code, this.#errorOf(event));
    if (messages) {
      this.#clock = setInterval(() => this.#listen(), 1000);
    }
  }

  /** Whether the server took it. */
  get opened() {
    return this.#opened;
  }

  /** When the server was heard last, in milliseconds since 1970. */
  get heardAt() {
    return this.#heardAt;
  }

  /** Something happened that links seldom survive, such as a sleep: it has to prove itself soon. */
  doubt() {
    this.#silentSeconds = Math.max(this.#silentSeconds, SILENCE - DOUBTED_SILENCE);
  }

  /** Closes without a word to anybody; `closed` does not follow. */
  abandon() {
    this.#over = true;
    clearInterval(this.#clock);
    clearTimeout(this.#patience);
    this.#socket.close();
  }

  /** @param {Uint8Array} bytes copied or sent before this returns, as a message of its own */
  send(bytes) {
    if (this.#socket.readyState === this.#socket.OPEN) {
      this.#socket.send(/** @type {Uint8Array<ArrayBuffer>} */ (bytes));
    }
  }

  /** @param {{type: string, [member: string]: unknown}} message */
  sendMessage(message) {
    if (this.#socket.readyState === this.#socket.OPEN) {
      this.#socket.send(JSON.stringify(message));
    }
  }

  /** Bytes that were sent and have not left this machine. */
  backlog() {
    return this.#socket.bufferedAmount;
  }

  /** @param {() => void} resume called when another look at the backlog is worth it */
  onceDrained(resume) {
    setTimeout(resume, DRAIN_INTERVAL);
  }

  /** Closes on purpose, which ends the session. */
  close() {
    if (!this.#over && !this.#closing) {
      this.#closing = true;
      this.#patience = setTimeout(() => this.#end(1000, null), CLOSE_PATIENCE);
      this.#socket.close(1000);
    }
  }

  /**
   * Closes because the other side broke a rule.
   *
   * @param {string} rule
   */
  reject(rule) {
    this.#fail(CLOSE_PROTOCOL, {
      code: "protocol",
      reason: `The server did what the protocol does not allow: ${rule}.`,
    });
  }

  #open() {
    if (this.#over || this.#closing) {
      return;
    }
    this.#opened = true;
    this.#hear();
    this.#listener.opened();
  }

  /** @param {unknown} data */
  #receive(data) {
    if (this.#over || this.#closing) {
      return;
    }
    this.#hear();
    if (data instanceof ArrayBuffer) {
      this.#listener.data(new Uint8Array(data));
    } else {
      this.#receiveText(String(data));
    }
  }

  /** @param {string} text */
  #receiveText(text) {
    if (!this.#messages) {
      return this.reject("text on a link that carries bytes (websocketd needs --binary)");
    }
    const message = parse(text);
    if (message === null) {
      return this.reject("a text message that is not a JSON object");
    }
    this.#listener.message(message);
  }

  #hear() {
    this.#silentSeconds = 0;
    this.#heardAt = Date.now();
  }

  /**
   * Counts seconds rather than compares times: what came while a tab was suspended is only heard
   * after it woke. But a link that was not heard for so long is doubted.
   */
  #listen() {
    const slept = Date.now() - this.#lookedAt >= SLEEP;
    this.#lookedAt = Date.now();
    this.#silentSeconds += 1;
    if (slept) {
      this.doubt();
    }
    if (this.#silentSeconds >= SILENCE) {
      this.#fail(CLOSE_SILENT, {
        code: this.#opened ? "silent" : "unreachable",
        reason: `The server has not been heard for ${SILENCE} seconds.`,
      });
    }
  }

  /**
   * @param {number} closeCode
   * @param {LinkError} error
   */
  #fail(closeCode, error) {
    if (this.#socket.readyState <= this.#socket.OPEN) {
      this.#socket.close(closeCode, error.code);
    }
    this.#end(null, error);
  }

  /**
   * @param {number | null} closeCode
   * @param {LinkError | null} error
   */
  #end(closeCode, error) {
    if (!this.#over) {
      this.#over = true;
      clearInterval(this.#clock);
      clearTimeout(this.#patience);
      this.#listener.closed({ closeCode, error });
    }
  }

  /**
   * @param {{code: number, reason: string}} close
   * @returns {LinkError | null}
   */
  #errorOf({ code, reason }) {
    if (this.#closing) {
      return null;
    }
    const refused = REFUSALS.get(code);
    if (refused !== undefined) {
      return { code: refused.code, reason: reason || refused.reason };
    }
    if (!this.#opened) {
      return refusal(
        "unreachable",
        "The server can't be reached, or does not take the connection.",
      );
    }
    if (code === 1000 || code === 1005) {
      return null;
    }
    if (code === 1001 || code === 1006) {
      return refusal("lost", reason || "The connection to the server was lost.");
    }
    return refusal("closed", reason || `The server closed the connection (code ${code}).`);
  }
}

/**
 * @param {LinkErrorCode} code
 * @param {string} reason
 * @returns {LinkError}
 */
function refusal(code, reason) {
  return { code, reason };
}

/**
 * @param {string} text
 * @returns {Record<string, unknown> | null}
 */
function parse(text) {
  if (text.length > MAX_TEXT) {
    return null;
  }
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** @module */

import { Fields, InvalidOption } from "./option-data.js";
import {
  BASE_ALLOCATION,
  ClientFlag,
  encodeText,
  exportReply,
  greeting,
  IHAVEOPT,
  Info,
  infoBlockSize,
  infoExport,
  infoText,
  metaContext,
  Option,
  OptionReply,
  optionReply,
  ProtocolError,
  serverEntry,
  TransmissionFlag,
  viewOf,
} from "./protocol.js";

/** @typedef {import("./bytes.js").ByteQueue} ByteQueue */

/**
 * @typedef {object} Export what the handshake offers; its names are "" and `name`
 * @property {string} name at most 4,096 bytes of UTF-8
 * @property {string} description for people, at most 4,096 bytes of UTF-8
 * @property {number} size bytes, at most Number.MAX_SAFE_INTEGER
 */

/**
 * @typedef {object} Negotiated what the client chose
 * @property {boolean} structured whether replies are structured
 * @property {boolean} allocation whether base:allocation may be asked for
 */

/** @typedef {{type: "transmission", negotiated: Negotiated} | {type: "aborted"}} HandshakeEnd */

/** Longest data of an option that is looked at; longer ones are skipped and refused. */
const MAX_OPTION_LENGTH = 64 * 1024;

/** A client that has not chosen after so many options never will. */
const MAX_OPTIONS = 1000;

const decoder = new TextDecoder();

/** The server's side of NBD's fixed newstyle handshake, without I/O. */
export class Handshake {
  /** @type {Export} */
  #export;
  /** @type {Uint8Array} */
  #name;
  /** @type {Uint8Array[]} */
  #output = [greeting()];
  /** @type {number | null} the client's flags, once they arrived */
  #clientFlags = null;
  /** @type {{code: number, length: number} | null} the option whose data is awaited */
  #option = null;
  #optionsSeen = 0;
  #skipping = 0;
  #structured = false;
  /** @type {Uint8Array | null} the name for which base:allocation was selected */
  #allocationFor = null;
  /** @type {HandshakeEnd | null} */
  #end = null;

  /** @param {Export} exported */
  constructor(exported) {
    this.#export = exported;
    this.#name = encodeText(exported.name);
  }

  /** @returns {Uint8Array[]} what is to be sent, in order; each once */
  takeOutput() {
    const output = this.#output;
    this.#output = [];
    return output;
  }

  /**
   * Understands as much of the input as there is, and not a byte beyond the handshake's end.
   *
   * @param {ByteQueue} input
   * @returns {HandshakeEnd | null} null: more input is needed
   * @throws {ProtocolError}
   */
  advance(input) {
    while (this.#end === null && this.#step(input)) {}
    return this.#end;
  }

  /**
   * @param {ByteQueue} input
   * @returns {boolean} whether there was enough input for a step
   */
  #step(input) {
    if (this.#skipping > 0) {
      this.#skipping -= input.discard(this.#skipping);
      return this.#skipping === 0;
    }
    if (this.#clientFlags === null) {
      return this.#readClientFlags(input);
    }
    return this.#option === null ? this.#readOptionHeader(input) : this.#readOptionData(input);
  }

  /** @param {ByteQueue} input */
  #readClientFlags(input) {
    const bytes = input.take(4);
    if (bytes === null) {
      return false;
    }
    const flags = viewOf(bytes).getUint32(0);
    const known = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES;
    if ((flags & ~known) !== 0) {
      throw new ProtocolError(`unknown client flags 0x${flags.toString(16)}`);
    }
    this.#clientFlags = flags;
    return true;
  }

  /** @param {ByteQueue} input */
  #readOptionHeader(input) {
    const bytes = input.take(16);
    if (bytes === null) {
      return false;
    }
    const view = viewOf(bytes);
    if (view.getBigUint64(0) !== IHAVEOPT) {
      throw new ProtocolError("an option without its magic number");
    }
    this.#optionsSeen += 1;
    if (this.#optionsSeen > MAX_OPTIONS) {
      throw new ProtocolError(`more than ${MAX_OPTIONS} options`);
    }
    const option = { code: view.getUint32(8), length: view.getUint32(12) };
    if (option.length > MAX_OPTION_LENGTH) {
      this.#skip(option);
    } else {
      this.#option = option;
    }
    return true;
  }

  /** @param {{code: number, length: number}} option */
  #skip({ code, length }) {
    if (code === Option.EXPORT_NAME) {
      throw new ProtocolError(`an export name of ${length} bytes`);
    }
    this.#refuse(code, OptionReply.ERR_TOO_BIG, `${length} bytes of data are too many`);
    this.#skipping = length;
  }

  /** @param {ByteQueue} input */
  #readOptionData(input) {
    const { code, length } = /** @type {{code: number, length: number}} */ (this.#option);
    const data = input.take(length);
    if (data === null) {
      return false;
    }
    this.#option = null;
    try {
      this.#answer(code, new Fields(data));
    } catch (error) {
      if (!(error instanceof InvalidOption)) {
        throw error;
      }
      this.#refuse(code, OptionReply.ERR_INVALID, error.message);
    }
    return true;
  }

  /**
   * @param {number} code
   * @param {Fields} fields
   */
  #answer(code, fields) {
    switch (code) {
      case Option.EXPORT_NAME:
        return this.#exportName(fields.rest());
      case Option.ABORT:
        this.#reply(code, OptionReply.ACK);
        this.#end = { type: "aborted" };
        return;
      case Option.LIST:
        fields.end();
        this.#reply(
          code,
          OptionReply.SERVER,
          serverEntry(this.#export.name, this.#export.description),
        );
        return this.#reply(code, OptionReply.ACK);
      case Option.INFO:
      case Option.GO:
        return this.#info(code, fields);
      case Option.STRUCTURED_REPLY:
        fields.end();
        this.#structured = true;
        return this.#reply(code, OptionReply.ACK);
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        return this.#metaContext(code, fields);
      default:
        return this.#refuse(code, OptionReply.ERR_UNSUP, "this server does not know the option");
    }
  }

  /** @param {Uint8Array} name */
  #exportName(name) {
    if (!this.#isOurs(name)) {
      throw new ProtocolError(
        `an export that does not exist was asked for, there is only "${this.#export.name}"`,
      );
    }
    const zeroes = (Number(this.#clientFlags) & ClientFlag.NO_ZEROES) === 0;
    this.#output.push(exportReply(this.#export.size, this.#flags(), zeroes));
    this.#begin(name);
  }

  /**
   * @param {number} code Option.INFO or Option.GO
   * @param {Fields} fields
   */
  #info(code, fields) {
    const name = fields.string(fields.uint32());
    const requests = new Set();
    for (let left = fields.uint16(); left > 0; left--) {
      requests.add(fields.uint16());
    }
    fields.end();
    if (!this.#isOurs(name)) {
      return this.#refuseName(code);
    }
    for (const info of this.#infos(requests)) {
      this.#reply(code, OptionReply.INFO, info);
    }
    this.#reply(code, OptionReply.ACK);
    if (code === Option.GO) {
      this.#begin(name);
    }
  }

  /**
   * @param {Set<number>} requests
   * @returns {Iterable<Uint8Array>}
   */
  *#infos(requests) {
    yield infoExport(this.#export.size, this.#flags());
    if (requests.has(Info.NAME)) {
      yield infoText(Info.NAME, this.#export.name);
    }
    if (requests.has(Info.DESCRIPTION)) {
      yield infoText(Info.DESCRIPTION, this.#export.description);
    }
    if (requests.has(Info.BLOCK_SIZE)) {
      yield infoBlockSize();
    }
  }

  /**
   * @param {number} code Option.LIST_META_CONTEXT or Option.SET_META_CONTEXT
   * @param {Fields} fields
   */
  #metaContext(code, fields) {
    const selecting = code === Option.SET_META_CONTEXT;
    if (selecting) {
      this.#allocationFor = null;
    }
    if (!this.#structured) {
      throw new InvalidOption("structured replies must be negotiated first");
    }
    const name = fields.string(fields.uint32());
    const queries = [];
    for (let left = fields.uint32(); left > 0; left--) {
      queries.push(decoder.decode(fields.string(fields.uint32())));
    }
    fields.end();
    if (!this.#isOurs(name)) {
      return this.#refuseName(code);
    }
    if (selecting ? selects(queries) : matches(queries)) {
      const id = selecting ? BASE_ALLOCATION.id : 0;
      this.#reply(code, OptionReply.META_CONTEXT, metaContext(id, BASE_ALLOCATION.name));
      this.#allocationFor = selecting ? name : this.#allocationFor;
    }
    this.#reply(code, OptionReply.ACK);
  }

  /** @param {Uint8Array} name the one by which the client chose the export */
  #begin(name) {
    const allocation = this.#allocationFor !== null && equal(this.#allocationFor, name);
    this.#end = {
      type: "transmission",
      negotiated: { structured: this.#structured, allocation },
    };
  }

  /** @returns {number} */
  #flags() {
    const { HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_CACHE, SEND_DF } = TransmissionFlag;
    const always = HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_CACHE;
    return this.#structured ? always | SEND_DF : always;
  }

  /** @param {Uint8Array} name */
  #isOurs(name) {
    return name.length === 0 || equal(name, this.#name);
  }

  /**
   * @param {number} code
   * @param {number} type
   * @param {Uint8Array} [data]
   */
  #reply(code, type, data) {
    this.#output.push(optionReply(code, type, data));
  }

  /**
   * @param {number} code
   * @param {number} type
   * @param {string} text
   */
  #refuse(code, type, text) {
    this.#reply(code, type, encodeText(text));
  }

  /** @param {number} code */
  #refuseName(code) {
    this.#refuse(code, OptionReply.ERR_UNKNOWN, `there is only "${this.#export.name}"`);
  }
}

/** @param {string[]} queries */
function selects(queries) {
  return queries.includes(BASE_ALLOCATION.name);
}

/** @param {string[]} queries none: everything; "base:" is a wildcard when listing, only */
function matches(queries) {
  return queries.length === 0 || queries.includes("base:") || selects(queries);
}

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 */
function equal(a, b) {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

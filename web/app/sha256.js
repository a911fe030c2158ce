// SHA-256 (FIPS 180-4) that takes its input in parts. The browser's own takes it whole, and not at all over plain http;
// libraries come for bundlers, and this page has none.

const BLOCK = 64;
const PRIMES = firstPrimes(64);
/** The fractional parts of the primes' square and cube roots. */
const START = PRIMES.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
const ROUND = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));

export class Sha256 {
  #state = Int32Array.from(START);
  #schedule = new Int32Array(64);
  #rest = new Uint8Array(BLOCK);
  #length = 0;

  /** @param {Uint8Array} bytes */
  update(bytes) {
    let at = 0;
    const held = this.#length % BLOCK;
    this.#length += bytes.length;
    if (held > 0) {
      at = Math.min(BLOCK - held, bytes.length);
      this.#rest.set(bytes.subarray(0, at), held);
      if (held + at < BLOCK) return;
      this.#blocks(this.#rest, 0, BLOCK);
    }
    const end = bytes.length - ((bytes.length - at) % BLOCK);
    this.#blocks(bytes, at, end);
    this.#rest.set(bytes.subarray(end));
  }

  /** @returns {string} 64 hexadecimal digits; nothing may be added afterwards */
  hex() {
    const held = this.#length % BLOCK;
    const padding = new Uint8Array((held < 56 ? BLOCK : 2 * BLOCK) - held);
    padding[0] = 0x80;
    const bits = new DataView(padding.buffer, padding.length - 8);
    bits.setBigUint64(0, BigInt(this.#length) * 8n);
    this.update(padding);
    return [...this.#state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  /** @param {Uint8Array} bytes @param {number} begin @param {number} end whole blocks */
  #blocks(bytes, begin, end) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = begin; at < end; at += BLOCK) this.#block(view, at);
  }

  /** @param {DataView} view @param {number} at */
  #block(view, at) {
    const w = this.#schedule;
    for (let i = 0; i < 16; i += 1) w[i] = view.getInt32(at + i * 4);
    for (let i = 16; i < 64; i += 1) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
      const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    const state = this.#state;
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i += 1) {
      const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND[i] + w[i]) | 0;
      const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => {
      state[i] = (state[i] + word) | 0;
    });
  }
}

/** @param {number} x @param {number} n @returns {number} */
function rotate(x, n) {
  return (x >>> n) | (x << (32 - n));
}

/** @param {number} root @returns {number} the first 32 bits after its point */
function fraction(root) {
  return ((root % 1) * 2 ** 32) | 0;
}

/** @param {number} n @returns {number[]} */
function firstPrimes(n) {
  /** @type {number[]} */
  const primes = [];
  for (let i = 2; primes.length < n; i += 1) {
    if (primes.every((prime) => i % prime !== 0)) primes.push(i);
  }
  return primes;
}

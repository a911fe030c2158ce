/** @module */

/**
 * The address that a WebSocket connects to.
 *
 * @param {string | URL} endpoint relative ones are resolved; http and https become ws and wss
 * @param {string | undefined} base the page's address
 * @returns {URL}
 * @throws {TypeError} when that gives no address for a WebSocket
 */
export function socketAddress(endpoint, base) {
  const address = new URL(String(endpoint), base);
  address.protocol = address.protocol.replace(/^http/, "ws");
  address.hash = "";
  if (!/^wss?:$/.test(address.protocol)) {
    throw new TypeError(`${address.protocol} is no scheme of a WebSocket`);
  }
  return address;
}

/**
 * @param {URL} address
 * @returns {boolean} whether it is where `nbd-proxy serve` takes a session rather than a plain link
 */
export function takesSessions(address) {
  return /\/nbd\/[^/]+$/.test(address.pathname);
}

/**
 * @param {URL} address
 * @param {string} session
 * @param {boolean} [takeover] whether it is to be taken from the page that serves it
 * @returns {URL}
 */
export function withSession(address, session, takeover = false) {
  const result = new URL(address);
  result.searchParams.set("session", session);
  result.searchParams.set("v", "1");
  if (takeover) {
    result.searchParams.set("takeover", "1");
  }
  return result;
}

/** @returns {string} 128 random bits in hexadecimal; works in insecure contexts too */
export function newSessionId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

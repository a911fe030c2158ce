// The server's HTTP API, as far as the page uses it. Addresses are relative to the page, so that a proxy may put both
// under a path of its own.

/**
 * @typedef {object} Session
 * @property {"attaching" | "attached" | "held" | "draining"} state
 * @property {{name: string, size: number, modified: number | null} | null} image
 * @property {string | null} device
 * @property {number} size bytes the machine sees
 * @property {boolean} read_only
 * @property {string} user
 * @property {string} from the address the image is served from
 * @property {number} since milliseconds since 1970
 * @property {number} bytes_read
 * @property {number} requests
 * @property {number | null} seconds_left while held
 * @property {string[]} [draining_for] what has to end before the device is free
 * @property {number | null} [until] the same as a time that stays true, in milliseconds since 1970; made here
 */

/**
 * @typedef {object} Configuration
 * @property {string} name
 * @property {boolean} default
 * @property {string} device what the configuration asks for, such as `auto`
 * @property {string} [media] what the machine shows it as, `disk` or `cdrom`
 * @property {Record<string, unknown> | null} metadata
 * @property {Right[]} [may] what the user may do with it; events don't tell
 * @property {Session | null} session
 */

/** @typedef {"attach" | "resume" | "eject" | "look"} Right */

/** @typedef {"password" | "token"} Way to sign in on the page */

/** @typedef {{token: string} | {user: string, password: string}} Credentials */

/**
 * @typedef {{kind: "open", configurations: Configuration[], user: string, login?: boolean}
 *   | {kind: "signed-out", message: string, ways: Way[]}
 *   | {kind: "plain"}
 *   | {kind: "unreachable"}} Access `plain` is a server of files and one unnamed link, such as websocketd
 */

/** @typedef {{configuration: Configuration} | {error: string, forcible: boolean}} EjectResult */

/** Who has the token of the address that the server printed, and no name of their own. */
const TOKEN_HOLDER = "local";

/** @returns {Promise<Access>} */
export async function access() {
  let response;
  try {
    response = await fetch(address("api/v1/configurations"), {
      headers: { Accept: "application/json" },
    });
  } catch {
    return { kind: "unreachable" };
  }
  if (response.status === 401 || response.status === 403) {
    const { error = "", sign_in: ways = ["token"] } = await body(response);
    return { kind: "signed-out", message: response.status === 403 ? error : "", ways };
  }
  if (response.ok && isJson(response)) {
    const { configurations, user = TOKEN_HOLDER, login = false } = await response.json();
    return { kind: "open", configurations, user, login };
  }
  return response.status >= 500 ? { kind: "unreachable" } : { kind: "plain" };
}

/**
 * Trades a password or a token for the cookie that all else asks for.
 * @param {Credentials} credentials
 * @returns {Promise<string>} why it was refused; empty when it was taken
 */
export async function login(credentials) {
  try {
    const response = await post("api/v1/login", credentials);
    if (response.ok) return "";
    const { error } = await body(response);
    return error ?? `The server refused (status ${response.status}).`;
  } catch {
    return "The server cannot be reached. Check that nbd-proxy runs, then try again.";
  }
}

/** Gives the cookie back, which is good for nothing then. */
export async function logout() {
  try {
    await post("api/v1/logout", {});
  } catch {
    // The page finds out by itself that the server cannot be reached.
  }
}

/**
 * @param {string} name
 * @param {boolean} force detach although somebody uses the device
 * @returns {Promise<EjectResult>}
 */
export async function eject(name, force) {
  try {
    const response = await post(`api/v1/configurations/${encodeURIComponent(name)}/eject`, {
      force,
    });
    if (response.ok) return { configuration: await response.json() };
    const { error, users } = await body(response);
    return {
      error: error ?? `The server refused (status ${response.status}).`,
      forcible: (users ?? []).length > 0,
    };
  } catch {
    return { error: "The server cannot be reached. Try again when it is back.", forcible: false };
  }
}

/**
 * Follows the configurations: each is told at every connection, and again when it changes. The browser connects again
 * by itself after a loss.
 * @param {(configuration: Configuration) => void} changed
 * @param {() => void} ended the server refuses to go on
 */
export function follow(changed, ended) {
  const events = new EventSource(address("api/v1/events"));
  events.addEventListener("configuration", (event) => changed(JSON.parse(event.data)));
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) ended();
  });
}

/**
 * @param {string | null} configuration null: the one unnamed link of a plain server
 * @returns {string} where its link is
 */
export function linkAddress(configuration) {
  const url = new URL(
    configuration === null ? "." : `nbd/${encodeURIComponent(configuration)}`,
    document.baseURI,
  );
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/** @param {string} path @returns {URL} */
function address(path) {
  return new URL(path, document.baseURI);
}

/** @param {string} path @param {unknown} data @returns {Promise<Response>} */
function post(path, data) {
  return fetch(address(path), {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(data),
  });
}

/**
 * @param {Response} response a refusal
 * @returns {Promise<{error?: string, users?: string[], sign_in?: Way[]}>}
 */
async function body(response) {
  try {
    return isJson(response) ? await response.json() : {};
  } catch {
    return {};
  }
}

/** @param {Response} response @returns {boolean} */
function isJson(response) {
  return (response.headers.get("Content-Type") ?? "").startsWith("application/json");
}

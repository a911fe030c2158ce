/**
 * nbd.js as a classic script: a global NBDServer(endpoint, file), with or without `new`.
 *
 *   var server = new NBDServer("ws://" + location.host + "/", file);
 *   server.onlog = function (message) { … };
 *   server.start();
 *   server.stop();
 *
 * It is a plain link that never reconnects by itself. The ES modules in ../nbd/ do the work; they
 * are loaded by the first start().
 */
(() => {
  /** @typedef {import("../nbd/nbd.js").NBDServer} ModuleServer */

  const script = /** @type {HTMLScriptElement | null} */ (document.currentScript);
  const entry = new URL("../nbd/nbd.js", script?.src || new URL("/js/nbd.js", location.href)).href;

  class Server {
    #endpoint;
    #file;
    /** @type {ModuleServer | null} */
    #server = null;
    /** Whether start() was called last, rather than stop(). */
    #wanted = false;

    /**
     * @param {string} endpoint
     * @param {File | Blob} file
     */
    constructor(endpoint, file) {
      this.#endpoint = endpoint;
      this.#file = file;
      /** @type {((message: string) => void) | null} */
      this.onlog = null;
      // On a Proxy, as Vue makes them, private members can't be reached.
      this.start = this.start.bind(this);
      this.stop = this.stop.bind(this);
    }

    start() {
      this.#wanted = true;
      this.#load().then(
        (server) => this.#wanted && server.start(),
        (error) => this.onlog?.(`${entry} can't be loaded: ${error.message}`),
      );
    }

    stop() {
      this.#wanted = false;
      this.#server?.stop();
    }

    async #load() {
      const { NBDServer } = await import(entry);
      this.#server ??= new NBDServer(this.#endpoint, this.#file);
      const server = /** @type {ModuleServer} */ (this.#server);
      server.onlog = (message) => this.onlog?.(message);
      return server;
    }
  }

  /**
   * @param {string} endpoint
   * @param {File | Blob} file
   */
  function NBDServer(endpoint, file) {
    return new Server(endpoint, file);
  }
  NBDServer.prototype = Server.prototype;

  Object.assign(globalThis, { NBDServer });
})();

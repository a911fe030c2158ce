// All that it takes to serve a disk from a page: lite.html#token=TOKEN, and ?configuration=NAME for another than "0".

import { NBDServer } from "./nbd/nbd.js";

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag */
const element = (tag) => /** @type {HTMLElementTagNameMap[T]} */ (document.querySelector(tag));
const image = element("input");
const eject = element("button");
const status = element("output");
const name = new URLSearchParams(location.search).get("configuration") ?? "0";
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;
/** @type {NBDServer | null} */
let server = null;

image.addEventListener("change", () => {
  server = new NBDServer(`nbd/${encodeURIComponent(name)}`, image.files?.[0], { token });
  server.addEventListener("state", () => server && show(server.state));
  server.start();
});
eject.addEventListener("click", () => server?.stop());
addEventListener("beforeunload", (event) => {
  // Without this tab the machine would lose its disk, unless it has a copy.
  if (!eject.disabled && !server?.state.server?.keep?.whole) event.preventDefault();
});

/** @param {import("./nbd/nbd.js").State} state */
function show({ phase, bytes, held, error, end, server }) {
  image.disabled = phase !== "ended";
  eject.disabled = phase === "ended";
  if (phase === "ended") status.value = error?.reason ?? end?.message ?? "Detached.";
  else if (held) status.value = `Reconnecting, ${held.secondsLeft} s left: ${held.reason}`;
  else if (server?.device) status.value = `Attached as ${server.device}; ${bytes} bytes read.`;
  else status.value = "Attaching…";
}

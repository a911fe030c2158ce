// index.html#{"way": …, "url": …, "token": …}: hands the file that is chosen to a Worker that serves it in one way.

const input = /** @type {HTMLInputElement} */ (document.querySelector("input"));

input.addEventListener("change", () => {
  const { way, ...rest } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  const worker = new Worker(new URL(`${way}.js`, import.meta.url), { type: "module" });
  worker.postMessage({ ...rest, file: input.files?.[0] });
});

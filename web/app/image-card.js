// Shows what the chosen image is.

import { setText } from "./configurations.js";
import { boots, kind, remarks } from "./image-words.js";
import { choiceOf } from "./state.js";

/** @typedef {import("./attachment.js").Choice} Choice */
/** @typedef {import("./state.js").State} State */

const NOTHING = "–";

export class ImageCard {
  /** @param {HTMLElement} root @param {{digest: () => void, cancelDigest: () => void}} handlers */
  constructor(root, handlers) {
    this.root = root;
    this.kind = part(root, "kind");
    this.boots = part(root, "boots");
    this.label = part(root, "label");
    this.sum = part(root, "sum");
    this.remarks = part(root, "remarks");
    this.button = /** @type {HTMLButtonElement} */ (part(root, "digest"));
    /** @type {Choice["digest"]} */
    this.digest = null;
    this.button.addEventListener("click", () => {
      if (this.digest !== null && this.digest.hex === "") handlers.cancelDigest();
      else handlers.digest();
    });
  }

  /** @param {State} state */
  render(state) {
    const { image, findings, digest } = choiceOf(state);
    this.root.hidden = image === null;
    const unknown = image === null ? NOTHING : "…";
    this.digest = digest;
    setText(this.kind, findings === null ? unknown : kind(findings));
    setText(this.boots, findings === null ? unknown : boots(findings));
    setText(this.label, findings === null ? unknown : findings.label || "None");
    setText(this.sum, image === null ? NOTHING : sum(digest, image.size));
    this.button.disabled = image === null;
    setText(this.button, digest === null ? "Compute" : "Cancel");
    this.button.hidden = digest !== null && (digest.hex !== "" || digest.error !== "");
    const chosen = state.configurations.find(({ name }) => name === state.chosen);
    const media = chosen?.media === "cdrom" ? "cdrom" : chosen?.metadata?.media;
    this.#renderRemarks(findings === null || image === null ? [] : remarks(findings, image, media));
  }

  /** @param {import("./image-words.js").Remark[]} found */
  #renderRemarks(found) {
    const key = JSON.stringify(found);
    // A live region that is left alone is not read out again.
    if (this.remarks.dataset.key === key) return;
    this.remarks.dataset.key = key;
    this.remarks.replaceChildren(
      ...found.map(({ tone, text, command }) => {
        const item = document.createElement("li");
        item.dataset.tone = tone;
        item.textContent = text;
        if (command !== "") {
          const code = document.createElement("code");
          code.textContent = command;
          item.append(" ", code);
        }
        return item;
      }),
    );
  }
}

/** @param {Choice["digest"]} digest @param {number} size @returns {string} */
function sum(digest, size) {
  if (digest === null) return "Not computed";
  if (digest.error !== "") return digest.error;
  return digest.hex || `${Math.floor((digest.done / size) * 100)}%`;
}

/** @param {HTMLElement} root @param {string} name @returns {HTMLElement} */
function part(root, name) {
  return /** @type {HTMLElement} */ (root.querySelector(`[data-part=${name}]`));
}

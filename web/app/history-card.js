// Shows the sessions of this tab that are over.

import { bytes, clock, duration } from "./format.js";

/** @typedef {import("./history.js").Past} Past */

export class HistoryCard {
  /** @param {HTMLElement} list @param {HTMLElement} note shown while there are none */
  constructor(list, note) {
    this.list = list;
    this.note = note;
    /** @type {Past[] | null} */
    this.shown = null;
  }

  /** @param {Past[]} history newest first */
  render(history) {
    if (this.shown === history) return;
    this.shown = history;
    this.note.hidden = history.length > 0;
    this.list.replaceChildren(...history.map(item));
  }
}

/** @param {Past} past @returns {HTMLElement} */
function item({ image, configuration, from, to, bytes: served, how }) {
  const title = document.createElement("strong");
  title.textContent = image;
  const facts = document.createElement("span");
  const where = configuration === null ? "" : ` · configuration “${configuration}”`;
  facts.textContent = `${clock(from)}–${clock(to)} (${duration(to - from)}) · ${bytes(served)} served${where}`;
  const end = document.createElement("span");
  end.textContent = how;
  const made = document.createElement("li");
  made.append(title, facts, end);
  return made;
}

// The list of the machine's configurations: one is chosen to attach to, each that is busy can be ejected.

import { isUnderWay } from "./attachment.js";
import { mayServe } from "./state.js";
import { named, sentence, usage } from "./words.js";

/** @typedef {import("./api.js").Configuration} Configuration */
/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} Handlers
 * @property {(name: string) => void} choose
 * @property {(name: string, force: boolean) => void} eject
 */

/** What the list says where it has no rows. @type {Record<string, string>} */
const NOTES = {
  open: "The machine has no configurations. Add one to its config.json.",
  "signed-out": "Sign in to see what the machine offers.",
  plain: "This server has one link and does not tell more about it.",
  unreachable: "The machine does not answer. Trying again…",
};

export class ConfigurationList {
  /**
   * @param {HTMLElement} root
   * @param {HTMLElement} note shown where there are no rows
   * @param {Handlers} handlers
   */
  constructor(root, note, handlers) {
    this.root = root;
    this.note = note;
    this.handlers = handlers;
    /** @type {Map<string, Row>} by name */
    this.rows = new Map();
  }

  /**
   * @param {State} state
   * @param {number} now milliseconds since 1970
   */
  render(state, now) {
    const { configurations } = state;
    this.note.hidden = configurations.length > 0;
    setText(this.note, state.access === null ? "Asking the machine…" : NOTES[state.access.kind]);
    this.#keep(configurations);
    for (const configuration of configurations) {
      const row = /** @type {Row} */ (this.rows.get(configuration.name));
      row.render(configuration, state, now);
    }
  }

  /** @param {Configuration[]} configurations whose rows stay or come; the others go */
  #keep(configurations) {
    const names = configurations.map(({ name }) => name);
    if (names.join("\n") === [...this.rows.keys()].join("\n")) return;
    const rows = names.map((name) => this.rows.get(name) ?? new Row(name, this.handlers));
    this.rows = new Map(rows.map((row) => [row.name, row]));
    this.root.replaceChildren(...rows.map((row) => row.root));
  }
}

class Row {
  /** @param {string} name @param {Handlers} handlers */
  constructor(name, handlers) {
    this.name = name;
    this.radio = element("input", { type: "radio", name: "configuration", value: name });
    this.title = element("strong");
    this.use = element("span", { className: "use" });
    this.eject = element("button", { type: "button", className: "small", textContent: "Eject" });
    this.refusal = element("div", { className: "refusal" });
    this.refusal.setAttribute("role", "alert");
    this.reason = element("p");
    this.force = element("button", {
      type: "button",
      className: "small",
      textContent: "Eject by force",
    });

    const text = element("span", { className: "text" }, this.title, this.use);
    this.refusal.append(this.reason, this.force);
    this.root = element(
      "li",
      { className: "configuration" },
      element("label", {}, this.radio, text),
      this.eject,
      this.refusal,
    );
    this.eject.setAttribute("aria-label", `Eject ${named(name)}`);
    this.force.setAttribute("aria-label", `Eject ${named(name)} by force`);

    this.radio.addEventListener("change", () => handlers.choose(name));
    this.eject.addEventListener("click", () => handlers.eject(name, false));
    this.force.addEventListener("click", () => handlers.eject(name, true));
  }

  /** @param {Configuration} configuration @param {State} state @param {number} now */
  render(configuration, state, now) {
    const { metadata, session, may } = configuration;
    const description = metadata?.description;
    setText(
      this.title,
      typeof description === "string" ? `${this.name} · ${description}` : this.name,
    );
    const attachment = state.attachments.get(this.name) ?? null;
    const ours = isUnderWay(attachment);
    const note = mayServe(configuration) ? "" : " · you may not attach here";
    setText(this.use, usage(session, ours, now) + note);
    this.radio.hidden = state.configurations.length === 1;
    this.radio.checked = state.chosen === this.name;
    this.radio.disabled = !mayServe(configuration);
    this.root.classList.toggle("ours", ours);
    this.root.classList.toggle("waits", attachment?.phase !== "attached");

    const eject = state.ejects.get(this.name) ?? null;
    // Its place is kept, so that the row does not change when its use does.
    const permitted = may === undefined || may.includes("eject");
    const ejectable = permitted && session !== null && session.state !== "draining";
    this.eject.classList.toggle("invisible", !ejectable);
    this.eject.disabled = eject?.waiting ?? false;
    this.refusal.hidden = eject === null || eject.error === "";
    setText(this.reason, sentence(eject?.error ?? ""));
    this.force.hidden = !eject?.forcible;
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Partial<HTMLElementTagNameMap[T]>} [properties]
 * @param {...Node} children
 * @returns {HTMLElementTagNameMap[T]}
 */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/**
 * Leaves a text alone that is as it should be: a live region would be read out again.
 * @param {Element} target
 * @param {string} text
 */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

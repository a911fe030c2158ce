// Shows the state on the page, and tells what people do there.

import { ActivityCard } from "./activity-card.js";
import { ConfigurationList, setText } from "./configurations.js";
import { canPick, handleOf, pick } from "./files.js";
import { bytes, count, delay, duration, rate } from "./format.js";
import { HistoryCard } from "./history-card.js";
import { ImageCard } from "./image-card.js";
import { isAtHand, offerAt } from "./resume.js";
import { attachmentOf, choiceOf, isActive, mayTakeOver, underWay } from "./state.js";
import { notOneFile, offerText, paddingNote, progress, sentence, summary } from "./words.js";

/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} Handlers
 * @property {(image: File, handle: FileSystemFileHandle | null) => void} image
 * @property {() => void} digest
 * @property {() => void} cancelDigest
 * @property {() => void} resume
 * @property {() => void} takeOver
 * @property {(problem: import("./words.js").Problem) => void} refuse
 * @property {() => void} start
 * @property {() => void} stop
 * @property {(text: string) => void} loginWithToken
 * @property {(user: string, password: string) => void} loginWithPassword
 * @property {() => void} signOut
 */

const NOTHING = "–";

export class View {
  /** @param {Handlers & import("./configurations.js").Handlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.file = /** @type {HTMLInputElement} */ (find("file"));
    this.drop = find("drop");
    this.go = /** @type {HTMLButtonElement} */ (find("go"));
    this.resume = /** @type {HTMLButtonElement} */ (find("resume"));
    this.takeOver = /** @type {HTMLButtonElement} */ (find("takeover"));
    this.stop = /** @type {HTMLButtonElement} */ (find("stop"));
    this.token = /** @type {HTMLInputElement} */ (find("token"));
    this.user = /** @type {HTMLInputElement} */ (find("user"));
    this.password = /** @type {HTMLInputElement} */ (find("password"));
    this.signOut = /** @type {HTMLButtonElement} */ (find("sign-out"));
    this.configurations = new ConfigurationList(
      find("configurations"),
      find("configurations-note"),
      handlers,
    );
    this.image = new ImageCard(find("facts"), handlers);
    this.activity = new ActivityCard(find("activity"));
    this.history = new HistoryCard(find("history"), find("history-note"));
    this.bar = /** @type {HTMLProgressElement} */ (find("bar"));
    this.picker = canPick;
    /** @type {State["log"] | null} */
    this.logged = null;
    setText(find("machine"), location.host);
    this.#listen();
  }

  /** @returns {File | null} what the file input holds */
  get chosenFile() {
    return this.file.files?.[0] ?? null;
  }

  /**
   * @param {State} state
   * @param {import("./activity.js").Activity | null} activity of the chosen configuration
   * @param {{wall: number, monotonic: number}} clocks milliseconds since 1970, and of nbd.js
   */
  render(state, activity, { wall: now, monotonic }) {
    const active = isActive(state);
    this.#renderLogin(state);
    this.#renderAccount(state);
    this.#renderImage(state, active);
    this.image.render(state);
    this.configurations.render(state, now);
    this.#renderOffer(state, active, now);
    this.#renderButtons(active);
    this.#renderState(state);
    this.#renderFigures(attachmentOf(state), activity?.rate(monotonic) ?? 0, now);
    this.activity.render(activity, attachmentOf(state)?.phase === "attached", monotonic);
    this.history.render(state.history);
    if (this.logged !== state.log) this.#renderLog(state.log);
  }

  focusFile() {
    this.file.focus();
  }

  /** Asks for a file, in answer to a click. */
  chooseFile() {
    this.file.click();
  }

  #listen() {
    const { handlers, file } = this;
    // Choosing the same file again has to count: it may have changed on disk.
    file.addEventListener("click", (event) => {
      file.value = "";
      if (this.picker) this.#pick(event);
    });
    file.addEventListener("change", () => {
      if (this.chosenFile !== null) handlers.image(this.chosenFile, null);
    });
    this.resume.addEventListener("click", () => handlers.resume());
    this.takeOver.addEventListener("click", () => handlers.takeOver());
    this.go.addEventListener("click", () => handlers.start());
    this.stop.addEventListener("click", () => handlers.stop());
    find("token-login").addEventListener("submit", (event) => {
      event.preventDefault();
      handlers.loginWithToken(this.token.value);
    });
    find("password-login").addEventListener("submit", (event) => {
      event.preventDefault();
      handlers.loginWithPassword(this.user.value, this.password.value);
      this.password.value = "";
    });
    this.signOut.addEventListener("click", () => handlers.signOut());
    // All of the page takes drops: a file dropped beside the zone would replace the page.
    addEventListener("dragover", (event) => this.#onDragOver(event));
    addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dragging");
    });
    addEventListener("drop", (event) => this.#onDrop(event));
  }

  /** Where the browser gives handles of files, its picker takes the input's place. @param {MouseEvent} event */
  async #pick(event) {
    event.preventDefault();
    try {
      const picked = await pick();
      if (picked !== null) this.handlers.image(picked.file, picked.handle);
    } catch {
      // Not allowed here, such as in another site's frame. The input always is.
      this.picker = false;
      this.file.click();
    }
  }

  /** @param {DragEvent} event */
  #onDragOver(event) {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.toggle("dragging", !this.file.disabled);
  }

  /** @param {DragEvent} event */
  async #onDrop(event) {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (this.file.disabled) return;
    const { files, items } = /** @type {DataTransfer} */ (event.dataTransfer);
    const isFile = files.length === 1 && !items[0].webkitGetAsEntry?.()?.isDirectory;
    // The list of files is empty once the event is over.
    const [file] = files;
    if (isFile) this.handlers.image(file, await handleOf(items[0]));
    else this.handlers.refuse(notOneFile());
  }

  /** @param {State} state */
  #renderLogin({ access, attachments }) {
    const signedOut = access?.kind === "signed-out";
    const ways = signedOut ? access.ways : [];
    const appears = signedOut && find("login").hidden;
    find("login").hidden = !signedOut;
    find("password-login").hidden = !ways.includes("password");
    find("token-login").hidden = !ways.includes("token");
    // Where people have passwords, tokens are for programs.
    find("token-note").hidden = ways.includes("password");
    find("login-elsewhere").hidden = ways.length > 0;
    if (appears && ways.includes("password")) this.user.focus();
    // What is attached, or why it failed, stays in sight.
    find("work").hidden = signedOut && attachments.size === 0;
    setText(find("login-problem"), signedOut ? sentence(access.message) : "");
    if (!signedOut) this.token.value = "";
  }

  /** @param {State} state */
  #renderAccount(state) {
    const { access } = state;
    const active = underWay(state).length > 0;
    const open = access?.kind === "open";
    find("account").hidden = !open;
    if (!open) return;
    setText(find("account-name"), access.user);
    this.signOut.hidden = !access.login;
    // It would take the image from the machine.
    this.signOut.disabled = active;
    this.signOut.title = active ? "Stop first" : "";
  }

  /** @param {State} state @param {boolean} active */
  #renderImage(state, active) {
    const { image } = choiceOf(state);
    this.file.disabled = active;
    this.drop.classList.toggle("chosen", image !== null);
    this.drop.classList.toggle("locked", active);
    setText(find("image-name"), image === null ? "Choose a disk image" : image.name);
    setText(find("image-size"), image === null ? "or drop it here" : bytes(image.size));
    setText(find("image-note"), image === null ? "" : paddingNote(image.size));
  }

  /** @param {State} state @param {boolean} active @param {number} now */
  #renderOffer(state, active, now) {
    const offer = active ? null : offerAt(state, state.chosen);
    find("offer").hidden = offer === null;
    this.takeOver.hidden = !mayTakeOver(state);
    if (offer === null) return;
    const ready = isAtHand(offer, choiceOf(state).image);
    setText(find("offer-text"), offerText(offer, ready, now));
    setText(this.resume, ready ? "Resume" : "Choose the same file");
  }

  /** @param {boolean} active */
  #renderButtons(active) {
    const { go, stop } = this;
    if (go.disabled === active) return;
    const focused = document.activeElement;
    go.disabled = active;
    stop.disabled = !active;
    // A disabled button would lose the focus of those who use the keyboard.
    if (focused === go || focused === stop) (active ? stop : go).focus();
  }

  /** @param {State} state */
  #renderState(state) {
    const attachment = attachmentOf(state);
    const { tone, headline, detail } = summary(state, attachment, choiceOf(state).image);
    const { text, done } = progress(attachment);
    const several = state.configurations.length > 1 && state.chosen !== null;
    setText(find("state-heading"), several ? `Configuration “${state.chosen}”` : "State");
    find("state").dataset.tone = tone;
    setText(find("headline"), headline);
    setText(find("detail"), detail);
    setText(find("progress"), text);
    this.bar.classList.toggle("invisible", done === null);
    this.bar.value = done ?? 0;
    document.title = attachment === null ? "nbd-proxy" : `${headline} – nbd-proxy`;
  }

  /** @param {import("./attachment.js").Attachment | null} attachment @param {number} speed @param {number} now */
  #renderFigures(attachment, speed, now) {
    const over = attachment === null || attachment.overAt !== null;
    const begin = attachment?.attachedAt ?? null;
    setText(find("rate"), over ? NOTHING : rate(speed));
    setText(find("served"), attachment === null ? NOTHING : bytes(attachment.link.bytes));
    setText(find("requests"), attachment === null ? NOTHING : count(attachment.link.requests));
    setText(find("round-trip"), delay(over ? null : attachment.link.roundTrip));
    setText(
      find("elapsed"),
      begin === null ? NOTHING : duration((attachment?.overAt ?? now) - begin),
    );
  }

  /** @param {State["log"]} log */
  #renderLog(log) {
    this.logged = log;
    const scroll = find("log-scroll");
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 8;
    find("log").replaceChildren(...log.map(logLine));
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  }
}

/** @param {{at: number, text: string}} entry @returns {HTMLElement} */
function logLine({ at, text }) {
  const time = document.createElement("time");
  const date = new Date(at);
  time.dateTime = date.toISOString();
  time.textContent = date.toTimeString().slice(0, 8);
  const line = document.createElement("li");
  line.append(time, ` ${text}`);
  return line;
}

/** @param {DragEvent} event @returns {boolean} */
function carriesFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}

/** @param {string} id @returns {HTMLElement} */
function find(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no element #${id}`);
  return found;
}

/** The messages that a client received, newest last; scrolls to the newest unless the reader has scrolled up. */

const LINES_MAX = 200;
const FOLLOW_PX = 24; // this close to the end counts as the end

/**
 * @typedef {object} Entry
 * @property {string | null} sender null: not from a pane
 * @property {string} text
 * @property {boolean} isCode
 * @property {string} encoding
 * @property {number} bytes of the whole message as sent
 * @property {number | null} latencyMs null: its `sentAt` is from another clock
 * @property {string} node
 */

export class Log {
  #box;
  #list;

  /** @param {HTMLElement} box @param {string} label */
  constructor(box, label) {
    this.#box = box;
    this.#list = /** @type {HTMLElement} */ (box.querySelector("ol"));
    box.setAttribute("aria-label", label);
  }

  /** @param {Entry} entry */
  add({ sender, text, isCode, encoding, bytes, latencyMs, node }) {
    const item = line("li", "entry");
    item.dataset.testid = "entry";
    const badge = line("span", "sender", sender ?? "•");
    badge.dataset.sender = sender ?? "";
    badge.title = sender === null ? "from elsewhere" : `from client ${sender}`;
    const body = line("span", isCode ? "text code" : "text", text);
    body.dataset.testid = "text";
    const meta = line("span", "meta");
    if (latencyMs !== null) meta.append(line("span", "latency", `${latencyMs.toFixed(1)} ms`));
    meta.append(line("span", "", encoding), line("span", "", `${bytes} B`), line("span", "", node));
    item.append(badge, body, meta);
    this.#append(item);
  }

  /** Show a note about the connection. @param {string} text @param {boolean} [isBad] */
  note(text, isBad = false) {
    this.#append(line("li", isBad ? "note bad" : "note", text));
  }

  /** @param {HTMLElement} item */
  #append(item) {
    const box = this.#box;
    const isFollowing = box.scrollHeight - box.scrollTop - box.clientHeight < FOLLOW_PX;
    this.#list.append(item);
    while (this.#list.childElementCount > LINES_MAX) this.#list.firstElementChild?.remove();
    if (isFollowing) box.scrollTop = box.scrollHeight;
  }
}

/** @param {string} tag @param {string} className @param {string} [text] */
function line(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/**
 * During a move two connections deliver the same channel: find the new one's messages that the old one delivered.
 *
 * Both have the same order; the new connection starts at some point in it. Its first message is searched among those
 * of the old connection, from the latest back; then both are compared one by one until they differ. Messages without
 * positions are compared by content, so equal messages can be confused; a message is then more likely to be delivered
 * twice than lost.
 */

const SEEN_MAX = 1_000; // messages per channel during a move; beyond it, some may be delivered twice

export class Overlap {
  /** @type {string[]} */
  #seen = [];
  /** The index in `#seen` that the new connection has reached; -1 before its first message. */
  #at = -1;

  /** Record a message of the old connection. @param {unknown} message */
  note(message) {
    this.#seen.push(JSON.stringify(message));
    if (this.#seen.length > SEEN_MAX) this.#seen.shift();
  }

  /** Whether the old connection delivered the new one's next message already. @param {unknown} message */
  isRepetition(message) {
    const text = JSON.stringify(message);
    if (this.#at < 0) this.#at = this.#seen.lastIndexOf(text);
    const isRepetition = this.#at >= 0 && this.#seen[this.#at] === text;
    this.#at = isRepetition ? this.#at + 1 : this.#seen.length;
    return isRepetition;
  }
}

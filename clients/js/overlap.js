/**
 * While a client moves, one channel comes over two connections: which messages of the new one came before?
 *
 * Both bring the same order, the new one from some point on. Its first message is looked for among those of the
 * old one, the latest first; from there on the two are compared one by one, until they differ. Contents stand in
 * for positions, so what is equal may be told apart wrongly, and then rather as new than as a repetition.
 */

const SEEN_MAX = 1_000; // of one channel, in the moment of a move; beyond, messages may repeat

export class Overlap {
  /** @type {string[]} */
  #seen = [];
  /** Where in `#seen` the new connection is; -1 before its first message. */
  #at = -1;

  /** Remember a message of the old connection. @param {unknown} message */
  note(message) {
    this.#seen.push(JSON.stringify(message));
    if (this.#seen.length > SEEN_MAX) this.#seen.shift();
  }

  /** Judge the next message of the new connection: true if the old one brought it. @param {unknown} message */
  isRepetition(message) {
    const text = JSON.stringify(message);
    if (this.#at < 0) this.#at = this.#seen.lastIndexOf(text);
    const isRepetition = this.#at >= 0 && this.#seen[this.#at] === text;
    this.#at = isRepetition ? this.#at + 1 : this.#seen.length;
    return isRepetition;
  }
}

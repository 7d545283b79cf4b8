/**
 * A topic's position on its channel, and how a message relates to it. Pure.
 *
 * A position is EPOCH:OFFSET:TAG and is sent back to the server unchanged. Only its epoch and offset are read here; if
 * it has another form, messages are accepted without a check. Offsets increase by one within an epoch; the tag
 * distinguishes two entries that were given the same offset.
 */

/**
 * How a message relates to the position: it is the `next` one, `repeated`, after a `hole` (messages between are
 * missing), or `loose` (published without a position).
 *
 * @typedef {"next" | "repeated" | "hole" | "loose"} Verdict
 */

const POSITION = /^([^:]*):(\d{1,15}):/;

export class Sequence {
  /** @type {string | null} */
  #position = null;
  #epoch = "";
  /** @type {number | null} */
  #offset = null;

  /** The position to recover from; null if the server has sent none. */
  get position() {
    return this.#position;
  }

  /** Set the position. @param {string | null} position */
  moveTo(position) {
    this.#position = position;
    const parts = position === null ? null : POSITION.exec(position);
    this.#epoch = parts?.[1] ?? "";
    this.#offset = parts === null ? null : Number(parts[2]);
  }

  /** Compare a message with the position. @param {unknown} offset @param {unknown} position @returns {Verdict} */
  judge(offset, position) {
    if (typeof offset !== "number") return "loose";
    if (this.#offset === null) return "next";
    if (typeof position === "string") {
      const epoch = POSITION.exec(position)?.[1];
      if (epoch !== undefined && epoch !== this.#epoch) return "hole";
      if (offset === this.#offset && position !== this.#position) return "hole"; // another entry had this offset
    }
    if (offset <= this.#offset) return "repeated";
    return offset === this.#offset + 1 ? "next" : "hole";
  }
}

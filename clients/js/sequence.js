/**
 * Where a topic stands on its channel, and what the next message is to that. Pure.
 *
 * A position is EPOCH:OFFSET:TAG. It goes back to the server as it came; only epoch and offset are read out of it here,
 * and what does not look like that is taken without judgement. Offsets count by one within an epoch; the tag tells
 * apart two entries that had one offset.
 */

/**
 * What a message is: the `next` one, `repeated`, behind a `hole`, or `loose`: published without a position.
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

  /** What to come back with; null if the server has told none. */
  get position() {
    return this.#position;
  }

  /** Stand here from now on. @param {string | null} position */
  moveTo(position) {
    this.#position = position;
    const parts = position === null ? null : POSITION.exec(position);
    this.#epoch = parts?.[1] ?? "";
    this.#offset = parts === null ? null : Number(parts[2]);
  }

  /** @param {unknown} offset @param {unknown} position @returns {Verdict} */
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

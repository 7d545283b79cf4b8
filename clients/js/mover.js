/**
 * Moves: from a session whose server is about to end it to the next one, before that happens.
 *
 * The next session gets all subscriptions and holds what it brings, while the old one delivers. When all are confirmed
 * and the old one has answered a last call, nothing can fall between the two, and the next one takes over. What both
 * brought is delivered once: by offset where the channel recovers (feed.js), else as far as contents can tell
 * (overlap.js). The old connection closes when its calls are answered.
 */

/** @typedef {import("./session.js").Session} Session */

// How long the old session may take to answer its last call. Longer and it is no better than gone.
const FENCE_TIMEOUT_MS = 1_000;

export class Mover {
  #random;
  /** Old sessions that still await answers. @type {Set<Session>} */
  #leaving = new Set();

  /** @param {() => number} random */
  constructor(random) {
    this.#random = random;
  }

  /**
   * When to dial: within half of the time that is left. Not all clients of a node at once, and not before a load
   * balancer knows that the node is leaving.
   *
   * @param {number} graceMs
   */
  delayMs(graceMs) {
    return (this.#random() * graceMs) / 2;
  }

  /** Return when `next`, which holds, may take over. @param {Session} next @param {Session} old */
  async prepared(next, old) {
    await next.settled();
    // The answer comes after everything that the old node had sent before: a fence.
    if (next.connection.isOpen) await old.connection.call("gateway", "info", {}, FENCE_TIMEOUT_MS).catch(() => {});
  }

  /** Let a session go once its calls are answered; it is heard no more. @param {Session} old */
  dismiss(old) {
    this.#leaving.add(old);
    old.connection.finish();
  }

  /** Know that a session has ended. @param {Session} session */
  forget(session) {
    this.#leaving.delete(session);
  }

  /** End what still awaits answers. */
  close() {
    for (const session of this.#leaving) session.connection.close();
  }
}

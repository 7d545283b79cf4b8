/**
 * Moves: replace a session whose server announced that it leaves, before the server closes it.
 *
 * The next session subscribes to all topics and buffers its messages while the old one delivers. When all subscriptions
 * are confirmed and the old session has replied to a last call, no message can be lost in between, and the next session
 * takes over. Messages that both received are delivered once: by offset if the channel recovers (feed.js), else by
 * comparing contents (overlap.js). The old connection closes when its calls have settled.
 */

/** @typedef {import("./session.js").Session} Session */

// How long to wait for the old session's reply to its last call; then the move goes on without it.
const FENCE_TIMEOUT_MS = 1_000;

export class Mover {
  #random;
  /** Old sessions that still wait for replies. @type {Set<Session>} */
  #leaving = new Set();

  /** @param {() => number} random */
  constructor(random) {
    this.#random = random;
  }

  /**
   * The delay before connecting: random, within half of the grace period. So the clients of a node do not reconnect all
   * at once, nor before the load balancer knows that the node is leaving.
   *
   * @param {number} graceMs
   */
  delayMs(graceMs) {
    return (this.#random() * graceMs) / 2;
  }

  /** Wait until `next`, which buffers, may replace `old`. @param {Session} next @param {Session} old */
  async prepared(next, old) {
    await next.settled();
    // A fence: the reply arrives after every message that the old node sent before it.
    if (next.connection.isOpen) await old.connection.call("gateway", "info", {}, FENCE_TIMEOUT_MS).catch(() => {});
  }

  /** Close a session once its calls have settled; its messages are ignored. @param {Session} old */
  dismiss(old) {
    this.#leaving.add(old);
    old.connection.finish();
  }

  /** Stop tracking a session that has ended. @param {Session} session */
  forget(session) {
    this.#leaving.delete(session);
  }

  /** Close all old sessions now. */
  close() {
    for (const session of this.#leaving) session.connection.close();
  }
}

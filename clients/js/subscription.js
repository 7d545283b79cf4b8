/** What `subscribe` returns: one handler's place on a channel. */

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./topic.js").TopicEvents} TopicEvents
 */

export class Subscription {
  #topic;
  #leave;
  /** What ends each listening. @type {(() => void)[]} */
  #ends = [];

  /** @param {Topic} topic @param {() => void} leave idempotent */
  constructor(topic, leave) {
    this.#topic = topic;
    this.#leave = leave;
    /** Resolves when the server first confirms; rejects with SnorkyError if it refuses. @readonly */
    this.ready = topic.ready;
  }

  get service() {
    return this.#topic.service;
  }

  get channel() {
    return this.#topic.channel;
  }

  /** Up to where messages have been delivered, to come back with (`recover`); null if there is no position. */
  get position() {
    return this.#topic.position;
  }

  /**
   * Hear what becomes of a channel that recovers: `gap`, `recovered` (topic.js). Returns what ends it; so does `close`.
   *
   * @template {keyof TopicEvents} E
   * @param {E} event @param {(detail: TopicEvents[E]) => void} handler
   * @returns {() => void}
   */
  on(event, handler) {
    const end = this.#topic.on(event, handler);
    this.#ends.push(end);
    return end;
  }

  /** Hear no more. The last one on a channel unsubscribes. Idempotent. */
  close() {
    for (const end of this.#ends.splice(0)) end();
    this.#leave();
  }
}

/** The result of `subscribe`: one handler on a channel. And a server-side subscription, which the backend has begun. */

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./topic.js").TopicEvents} TopicEvents
 * @typedef {import("./topic.js").MessageHandler} MessageHandler
 */

/** One handler on a channel, until `close`. */
export class Subscription {
  #topic;
  #leave;
  /** Functions that remove the event handlers. @type {(() => void)[]} */
  #ends = [];

  /** @param {Topic} topic @param {() => void} leave idempotent */
  constructor(topic, leave) {
    this.#topic = topic;
    this.#leave = leave;
    /** Resolves when the server confirms the subscription; rejects with SnorkyError if it refuses. @readonly */
    this.ready = topic.ready;
  }

  /** The name of the channel's service. */
  get service() {
    return this.#topic.service;
  }

  /** The channel, any JSON entity. */
  get channel() {
    return this.#topic.channel;
  }

  /** The position of the last message delivered, to recover from; null if there is none. */
  get position() {
    return this.#topic.position;
  }

  /**
   * Listen to `gap` or `recovered` of a channel that recovers, or to `unsubscribed` (topic.js). Returns a function that
   * removes the handler; `close` removes it too.
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

  /** Remove the handler. The last one of a channel unsubscribes. Idempotent. */
  close() {
    for (const end of this.#ends.splice(0)) end();
    this.#leave();
  }
}

/** A server-side subscription, until the backend ends it or `close` is called. Messages arrive after its event. */
export class ServerSubscription extends Subscription {
  #join;

  /** @param {Topic} topic @param {() => void} leave idempotent */
  constructor(topic, leave) {
    super(topic, leave);
    this.#join = (/** @type {MessageHandler} */ handler) => topic.join(handler);
  }

  /**
   * Add a handler of messages, best in the handler of the event: earlier messages are not delivered to it. Returns a
   * function that removes it.
   *
   * @param {MessageHandler} handler
   * @returns {() => void}
   */
  handle(handler) {
    return this.#join(handler);
  }
}

/**
 * One channel of one service as this client wants it, whatever connection it comes over: its handlers.
 *
 * @typedef {object} MessageInfo
 * @property {string} service
 * @property {any} channel
 * @property {number} [offset] on channels that keep history
 * @property {string} [position] opaque
 *
 * @typedef {import("./error.js").SnorkyError} SnorkyError
 * @typedef {(message: any, info: MessageInfo) => void} MessageHandler
 */

import { channelName } from "./canonical.js";
import { protect } from "./emitter.js";

/** Two channels are the same iff their keys are. @param {string} service @param {unknown} channel */
export function topicKey(service, channel) {
  return `${service}:${channelName(channel)}`;
}

export class Topic {
  /** @type {Set<{handler: MessageHandler}>} */
  #seats = new Set();
  /** @type {"wished" | "confirmed" | "refused"} */
  #state = "wished";
  #resolve = () => {};
  #reject = (/** @type {SnorkyError} */ _error) => {};
  /** @type {Promise<void>} */
  #ready = Promise.resolve();

  /** @param {string} service @param {any} channel */
  constructor(service, channel) {
    this.service = service;
    this.channel = channel;
    this.key = topicKey(service, channel);
    this.#wish();
  }

  get isWanted() {
    return this.#seats.size > 0;
  }

  get isRefused() {
    return this.#state === "refused";
  }

  /** The first answer of a server: resolves when subscribed, rejects when refused or given up. */
  get ready() {
    return this.#ready;
  }

  /** Add a handler; returns what removes it. @param {MessageHandler} handler */
  join(handler) {
    if (this.#state === "refused") this.#wish(); // who asks again may hear another answer
    const seat = { handler };
    this.#seats.add(seat);
    return () => this.#seats.delete(seat);
  }

  /** Hand a message to every handler. @param {import("./connection.js").Notification} notification */
  deliver({ message, offset, position }) {
    /** @type {MessageInfo} */
    const info = { service: this.service, channel: this.channel };
    if (typeof offset === "number") info.offset = offset;
    if (typeof position === "string") info.position = position;
    for (const seat of [...this.#seats]) {
      if (!this.#seats.has(seat)) continue; // closed by a handler before it
      protect(() => seat.handler(message, info));
    }
  }

  confirm() {
    this.#state = "confirmed";
    this.#resolve();
  }

  /** @param {SnorkyError} error */
  refuse(error) {
    this.#state = "refused";
    this.#reject(error);
  }

  #wish() {
    this.#state = "wished";
    this.#ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#ready.catch(() => {}); // refusals are also told by the event `error`: nobody has to await
  }
}

/** What `subscribe` returns: one handler's place on a channel. */
export class Subscription {
  #topic;
  #leave;

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

  /** Hear no more. The last one on a channel unsubscribes. Idempotent. */
  close() {
    this.#leave();
  }
}

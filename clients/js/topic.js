/**
 * One channel of one service as this client wants it, whatever connection it comes over: its handlers, and where it
 * stands.
 *
 * @typedef {object} MessageInfo
 * @property {string} service
 * @property {any} channel
 * @property {number} [offset] on channels that keep history
 * @property {string} [position] to come back with: `subscribe(channel, handler, {recover: position})`
 *
 * @typedef {object} TopicEvents
 * @property {Gap} gap
 * @property {{position: string | null, count: number}} recovered asked again, and nothing is missing: `count` messages
 *   that had been missed were delivered; of many, the others follow
 *
 * @typedef {object} Gap messages are missing that can no longer be had; usually one fetches the present state
 * @property {"live" | "recovery"} cause on a connection that stands, or behind the return to the channel
 * @property {string | null} position from here on; null: the channel keeps no history
 *
 * @typedef {import("./error.js").SnorkyError} SnorkyError
 * @typedef {(message: any, info: MessageInfo) => void} MessageHandler
 */

import { channelName } from "./canonical.js";
import { Emitter, protect } from "./emitter.js";
import { Sequence } from "./sequence.js";

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
  #emitter = new Emitter();
  #hasBeenConfirmed = false;
  /** Whether what is missed is asked for. */
  recovers = false;
  sequence = new Sequence();

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

  /** True if a server has confirmed it before, on whatever connection. */
  get hasBeenConfirmed() {
    return this.#hasBeenConfirmed;
  }

  /** Up to where messages have been delivered; null if the server has told no position. */
  get position() {
    return this.sequence.position;
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

  /**
   * @template {keyof TopicEvents} E
   * @param {E} event @param {(detail: TopicEvents[E]) => void} handler
   */
  on(event, handler) {
    return this.#emitter.on(event, handler);
  }

  /**
   * Deliver the next message, and stand behind it. False if there is nothing to deliver: in its place was what is not
   * fit for anybody (a tombstone).
   *
   * @param {Record<string, any>} notification
   */
  take(notification) {
    const { position, tombstone } = notification;
    this.sequence.moveTo(typeof position === "string" ? position : null);
    if (tombstone === true) return false;
    this.deliver(notification);
    return true;
  }

  /** Hand a message to every handler. @param {Record<string, any>} notification */
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

  /** Tell that messages are missing. @param {string | null} position from here on @param {Gap["cause"]} cause */
  lose(position, cause) {
    this.sequence.moveTo(position);
    this.#emitter.emit("gap", { cause, position });
  }

  /** Tell that nothing is missing. @param {number} count messages that had been */
  recovered(count) {
    this.#emitter.emit("recovered", { position: this.position, count });
  }

  confirm() {
    this.#state = "confirmed";
    this.#hasBeenConfirmed = true;
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

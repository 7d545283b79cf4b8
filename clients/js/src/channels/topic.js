/**
 * One channel of one service that this client subscribes to: its handlers and its position, across connections.
 *
 * @typedef {object} MessageInfo
 * @property {string} service
 * @property {any} channel
 * @property {number} [offset] on channels that keep history
 * @property {string} [position] to recover from: `subscribe(channel, handler, {recover: position})`
 *
 * @typedef {object} TopicEvents
 * @property {Gap} gap
 * @property {{position: string | null, count: number}} recovered subscribed again, and no message is missing: `count`
 *   missed messages were delivered with the reply; if there were many, the others follow
 *
 * @property {Unsubscribed} unsubscribed the subscription that was confirmed has ended
 *
 * @typedef {object} Unsubscribed
 * @property {string} code why: `revoked`, `expired` (if the token was a text), `not_authorized`, `unsubscribed` (by the
 *   backend), or that of a refusal
 * @property {string} reason for people
 *
 * @typedef {object} Gap messages are missing and no longer available; applications usually fetch the present state
 * @property {"live" | "recovery"} cause `live`: while connected; `recovery`: after subscribing again
 * @property {string | null} position where delivery continues; null: the channel keeps no history
 *
 * @typedef {import("../error.js").SnorkyError} SnorkyError
 * @typedef {import("../session/grant.js").SubscriptionTokenSource} SubscriptionTokenSource
 * @typedef {(message: any, info: MessageInfo) => void} MessageHandler
 */

import { channelName } from "../wire/canonical.js";
import { Emitter, protect } from "../emitter.js";
import { Sequence } from "./sequence.js";

/** A key that is equal for two channels iff they are the same. @param {string} service @param {unknown} channel */
export function topicKey(service, channel) {
  return `${service}:${channelName(channel)}`;
}

export class Topic {
  /** @type {Set<{handler: MessageHandler, token: SubscriptionTokenSource | undefined}>} */
  #seats = new Set();
  /** @type {"wished" | "confirmed" | "refused"} */
  #state = "wished";
  #resolve = () => {};
  #reject = (/** @type {SnorkyError} */ _error) => {};
  /** @type {Promise<void>} */
  #ready = Promise.resolve();
  #emitter = new Emitter();
  #hasBeenConfirmed = false;
  /** Whether missed messages are requested. */
  recovers = false;
  sequence = new Sequence();

  /** @param {string} service @param {any} channel @param {boolean} [isServerSide] the backend has subscribed this client */
  constructor(service, channel, isServerSide = false) {
    this.service = service;
    this.channel = channel;
    this.isServerSide = isServerSide;
    this.key = topicKey(service, channel);
    this.#wish();
  }

  get isWanted() {
    return this.isServerSide || this.#seats.size > 0;
  }

  /** True until a server refuses or ends the subscription that one has confirmed. */
  get isConfirmed() {
    return this.#state === "confirmed";
  }

  /** What gives the subscription's token: that of the latest handler that has one. */
  get token() {
    return [...this.#seats].findLast(({ token }) => token !== undefined)?.token;
  }

  /** True if a server has confirmed the subscription before, on any connection. */
  get hasBeenConfirmed() {
    return this.#hasBeenConfirmed;
  }

  /** The position of the last message delivered; null if the server has sent none. */
  get position() {
    return this.sequence.position;
  }

  /** Resolves when the subscription is confirmed; rejects when it is refused or closed. */
  get ready() {
    return this.#ready;
  }

  /**
   * Add a handler; returns a function that removes it.
   *
   * @param {MessageHandler} handler @param {SubscriptionTokenSource} [token]
   */
  join(handler, token) {
    if (this.#state === "refused") this.#wish(); // the server may accept it now
    const seat = { handler, token };
    this.#seats.add(seat);
    return () => this.#seats.delete(seat);
  }

  /** Remove all handlers. */
  clear() {
    this.#seats.clear();
  }

  /**
   * Add a handler of an event; returns a function that removes it.
   *
   * @template {keyof TopicEvents} E
   * @param {E} event @param {(detail: TopicEvents[E]) => void} handler
   */
  on(event, handler) {
    return this.#emitter.on(event, handler);
  }

  /**
   * Deliver the next message and set the position. Returns false for a tombstone, the placeholder of an invalid
   * message, which is not delivered.
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

  /** Call every handler with a message. @param {Record<string, any>} notification */
  deliver({ message, offset, position }) {
    /** @type {MessageInfo} */
    const info = { service: this.service, channel: this.channel };
    if (typeof offset === "number") info.offset = offset;
    if (typeof position === "string") info.position = position;
    for (const seat of [...this.#seats]) {
      if (!this.#seats.has(seat)) continue; // an earlier handler closed it
      protect(() => seat.handler(message, info));
    }
  }

  /** Report missing messages. @param {string | null} position where delivery continues @param {Gap["cause"]} cause */
  lose(position, cause) {
    this.sequence.moveTo(position);
    this.#emitter.emit("gap", { cause, position });
  }

  /** Report that no message is missing. @param {number} count missed messages that were delivered */
  recovered(count) {
    this.#emitter.emit("recovered", { position: this.position, count });
  }

  /** Resolve `ready`. */
  confirm() {
    this.#state = "confirmed";
    this.#hasBeenConfirmed = true;
    this.#resolve();
  }

  /** Reject `ready`. @param {SnorkyError} error */
  refuse(error) {
    this.#state = "refused";
    this.#reject(error);
  }

  /** Report that the subscription has ended. @param {SnorkyError} error */
  ended({ code, message }) {
    this.#emitter.emit("unsubscribed", { code, reason: message });
  }

  #wish() {
    this.#state = "wished";
    this.#ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#ready.catch(() => {}); // the event `error` reports refusals too, so `ready` need not be awaited
  }
}

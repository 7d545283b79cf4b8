/**
 * A connection together with the subscriptions that stand on it.
 *
 * A line delivers what its connection brings, or holds it while another line still delivers (a move).
 * Requests of one connection are handled in order, so subscribing right after unsubscribing needs no waiting.
 */

import { Connection } from "./connection.js";
import { SnorkyError } from "./error.js";
import { Overlap } from "./overlap.js";

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./connection.js").Notification} Notification
 *
 * @typedef {object} LineEvents
 * @property {(service: string, message: Notification) => void} onNotification in order; after `release` if held
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused for good, as far as this line goes
 *
 * @typedef {import("./connection.js").ConnectionOptions
 *   & {callTimeoutMs: number, random: () => number}} LineOptions
 * @typedef {Pick<import("./connection.js").ConnectionEvents, "onOpen" | "onFault" | "onEnd">} SocketEvents
 */

const RETRY_AFTER_MS = 1_000; // where the server names no time
// After a move, how much later this line may still bring what the one before it brought.
const OVERLAP_MS = 500;
const HELD_MAX = 10_000; // messages; a move takes a few round trips

export class Line {
  #options;
  #events;
  /** Topics on this line, each with the promise of its first final answer. @type {Map<Topic, Promise<void>>} */
  #enrolled = new Map();
  /** @type {[string, Notification][] | null} */
  #held = null;
  /** Of the channels that two lines bring during a move. @type {Map<Topic, Overlap>} */
  #overlaps = new Map();
  #hasEnded = false;
  /** What ends each wait. @type {Set<() => void>} */
  #waits = new Set();
  /** Set once the server has asked this connection to move elsewhere. @type {number | null} */
  movingGraceMs = null;

  /** @param {LineOptions} options @param {LineEvents & SocketEvents} events */
  constructor(options, events) {
    this.#options = options;
    this.#events = events;
    this.connection = new Connection(options, {
      onOpen: events.onOpen,
      onFault: events.onFault,
      onNotification: (service, message) => this.#onNotification(service, message),
      onEnd: (code, reason) => {
        this.#hasEnded = true;
        for (const end of [...this.#waits]) end();
        events.onEnd(code, reason);
      },
    });
    this.openedAtMs = Infinity;
  }

  /** Have the topic on this line; tries again where the server says that it helps. @param {Topic} topic */
  subscribe(topic) {
    if (!this.connection.isOpen || this.#enrolled.has(topic)) return;
    this.#enrolled.set(topic, this.#subscribe(topic));
    if (this.isHolding) this.#overlaps.set(topic, new Overlap());
  }

  /** @param {Topic} topic */
  unsubscribe(topic) {
    this.#overlaps.delete(topic);
    if (!this.#enrolled.delete(topic) || !this.connection.isOpen) return;
    const params = { channel: topic.channel };
    // Refused means that there was nothing to give up.
    this.connection.call(topic.service, "unsubscribe", params, this.#options.callTimeoutMs).catch(() => {});
  }

  /** Return when every topic is confirmed or refused, those added meanwhile too, or the line has ended. */
  async settled() {
    let count = -1;
    while (!this.#hasEnded && count !== this.#enrolled.size) {
      count = this.#enrolled.size;
      await Promise.all(this.#enrolled.values());
    }
  }

  get isHolding() {
    return this.#held !== null;
  }

  /** Keep what comes until `release`. */
  hold() {
    this.#held = [];
  }

  /** Deliver what was held, and from now on what comes. */
  release() {
    const held = this.#held ?? [];
    this.#held = null;
    for (const [service, message] of held) this.#events.onNotification(service, message);
    if (this.#overlaps.size > 0) void this.#wait(OVERLAP_MS).then(() => this.#overlaps.clear());
  }

  /** Know that the line before this one brought a message. @param {Topic} topic @param {unknown} message */
  note(topic, message) {
    this.#overlaps.get(topic)?.note(message);
  }

  /** True if the line before this one brought the message already. @param {Topic} topic @param {unknown} message */
  isRepetition(topic, message) {
    return this.#overlaps.get(topic)?.isRepetition(message) ?? false;
  }

  /** @param {Topic} topic */
  async #subscribe(topic) {
    for (;;) {
      const answer = await this.#attempt(topic);
      // Not wanted here any more, or by a later attempt: whatever the answer is, it is not ours to act upon.
      if (this.#hasEnded || !this.#enrolled.has(topic)) return;
      if (answer === null) return topic.confirm();
      const { retryAfterMs } = answer;
      if (retryAfterMs === null && answer.code !== "timeout") {
        this.#enrolled.delete(topic);
        return this.#events.onRefused(topic, answer);
      }
      const delayMs = (retryAfterMs ?? RETRY_AFTER_MS) * (1 + this.#options.random());
      await this.#wait(delayMs);
      if (this.#hasEnded || !this.#enrolled.has(topic)) return;
    }
  }

  /** Return after `delayMs`, or when the line ends. @param {number} delayMs @returns {Promise<void>} */
  #wait(delayMs) {
    return new Promise((resolve) => {
      const done = () => {
        cancelTimer();
        this.#waits.delete(done);
        resolve();
      };
      const cancelTimer = this.#options.clock.after(delayMs, done);
      this.#waits.add(done);
    });
  }

  /** Null if subscribed. @param {Topic} topic @returns {Promise<SnorkyError | null>} */
  async #attempt(topic) {
    const params = { channel: topic.channel };
    try {
      await this.connection.call(topic.service, "subscribe", params, this.#options.callTimeoutMs);
      return null;
    } catch (error) {
      if (!(error instanceof SnorkyError)) throw error;
      // After a timeout the first attempt may have come through all the same.
      return error.message === "Already subscribed" ? null : error;
    }
  }

  /** @param {string} service @param {Notification} message */
  #onNotification(service, message) {
    if (this.#held === null || service === "gateway") this.#events.onNotification(service, message);
    else if (this.#held.length < HELD_MAX) this.#held.push([service, message]);
    else this.connection.close("held too much"); // a hole would be silent; a new connection is not
  }
}

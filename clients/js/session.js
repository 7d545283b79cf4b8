/**
 * A connection together with the subscriptions that stand on it.
 *
 * A session delivers what its connection brings, or holds it while another one still delivers (a move).
 * Requests of one connection are handled in order, so subscribing right after unsubscribing needs no waiting.
 */

import { Connection } from "./connection.js";
import { SnorkyError } from "./error.js";
import { Feed } from "./feed.js";
import { Overlap } from "./overlap.js";

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./connection.js").Notification} Notification
 *
 * @typedef {object} SessionEvents
 * @property {(service: string, message: Notification) => void} onNotice whatever is no channel's, in order; what is not
 *   of the service "gateway" after `release` if held
 * @property {(topic: Topic, message: Notification) => void} onLoose as `onNotice`, of a message without a position
 * @property {(service: string, channel: unknown) => Topic | undefined} find the topic of a channel
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused for good, as far as this session goes
 *
 * @typedef {import("./connection.js").ConnectionOptions
 *   & {callTimeoutMs: number, random: () => number}} SessionOptions
 * @typedef {Pick<import("./connection.js").ConnectionEvents, "onOpen" | "onFault" | "onEnd">} SocketEvents
 *
 * @typedef {{feed: Feed, answered: Promise<void>}} Enrolment with the promise of its first final answer
 */

const RETRY_AFTER_MS = 1_000; // where the server names no time
// After a move, how much later this session may still bring what the one before it brought.
const OVERLAP_MS = 500;
const HELD_MAX = 10_000; // notifications of no channel; a move takes a few round trips

export class Session {
  #options;
  #events;
  /** @type {Map<Topic, Enrolment>} */
  #enrolled = new Map();
  /** Held, and of no channel. @type {[string, Notification][] | null} */
  #held = null;
  /** Of the channels that two sessions bring during a move. @type {Map<Topic, Overlap>} */
  #overlaps = new Map();
  #hasEnded = false;
  /** What ends each wait. @type {Set<() => void>} */
  #waits = new Set();
  /** Set once the server has asked this connection to move elsewhere. @type {number | null} */
  movingGraceMs = null;

  /** Dial. @param {SessionOptions} options @param {SessionEvents & SocketEvents} events */
  constructor(options, events) {
    this.#options = options;
    this.#events = events;
    this.connection = new Connection(options, {
      onOpen: events.onOpen,
      onFault: events.onFault,
      onNotification: (service, message) => this.#onNotification(service, message),
      onEnd: (code, reason, refusal) => {
        this.#hasEnded = true;
        for (const { feed } of this.#enrolled.values()) feed.end();
        for (const end of [...this.#waits]) end();
        events.onEnd(code, reason, refusal);
      },
    });
    this.openedAtMs = Infinity;
  }

  get isHolding() {
    return this.#held !== null;
  }

  /** Have the topic on this session; tries again where the server says that it helps. @param {Topic} topic */
  subscribe(topic) {
    if (!this.connection.isOpen) return;
    const enrolment = this.#enrolled.get(topic);
    if (enrolment === undefined) {
      this.#enrol(topic);
      if (this.isHolding) this.#overlaps.set(topic, new Overlap());
    } else if (topic.recovers && !enrolment.feed.recovers) {
      this.#askAnew(topic);
    }
  }

  /** @param {Topic} topic */
  unsubscribe(topic) {
    this.#overlaps.delete(topic);
    this.#enrolled.get(topic)?.feed.end();
    if (this.#enrolled.delete(topic) && this.connection.isOpen) void this.#giveUp(topic);
  }

  /** Return when every topic is confirmed or refused, those added meanwhile too, or the session has ended. */
  async settled() {
    let count = -1;
    while (!this.#hasEnded && count !== this.#enrolled.size) {
      count = this.#enrolled.size;
      await Promise.all([...this.#enrolled.values()].map(({ answered }) => answered));
    }
  }

  /** Keep what comes until `release`. */
  hold() {
    this.#held = [];
  }

  /** Deliver what was held, and from now on what comes. */
  release() {
    const held = this.#held ?? [];
    this.#held = null;
    for (const { feed } of [...this.#enrolled.values()]) feed.release();
    for (const [service, message] of held) this.#events.onNotice(service, message);
    if (this.#overlaps.size > 0) void this.#wait(OVERLAP_MS).then(() => this.#overlaps.clear());
  }

  /** Know that the session before this one brought a message. @param {Topic} topic @param {unknown} message */
  note(topic, message) {
    this.#overlaps.get(topic)?.note(message);
  }

  /** True if the session before this one brought the message already. @param {Topic} topic @param {unknown} message */
  isRepetition(topic, message) {
    return this.#overlaps.get(topic)?.isRepetition(message) ?? false;
  }

  // -- subscriptions -------------------------------------------------------------------------------------------

  /** @param {Topic} topic @param {Promise<void>} [before] what has to be answered first */
  #enrol(topic, before) {
    const feed = new Feed(topic, { onLoose: this.#events.onLoose, repair: () => this.#askAnew(topic) }, this.isHolding);
    this.#enrolled.set(topic, { feed, answered: this.#subscribe(topic, feed, before) });
  }

  /** Give the channel up and ask for it again, from where the topic stands. @param {Topic} topic */
  #askAnew(topic) {
    if (this.#hasEnded || !this.#enrolled.has(topic)) return;
    this.#enrolled.get(topic)?.feed.end();
    this.#enrol(topic, this.#giveUp(topic));
  }

  /** @param {Topic} topic @returns {Promise<void>} */
  async #giveUp(topic) {
    const params = { channel: topic.channel };
    // Refused means that there was nothing to give up.
    await this.connection.call(topic.service, "unsubscribe", params, this.#options.callTimeoutMs).catch(() => {});
  }

  /** @param {Topic} topic @param {Feed} feed @param {Promise<void>} [before] */
  async #subscribe(topic, feed, before) {
    const isOver = () => this.#hasEnded || this.#enrolled.get(topic)?.feed !== feed;
    if (before !== undefined) {
      await before;
      if (isOver()) return;
      feed.clear();
    }
    for (;;) {
      const answer = await this.#attempt(topic, feed);
      // Not wanted here any more, or by a later attempt: whatever the answer is, it is not ours to act upon.
      if (isOver()) return;
      if (!(answer instanceof SnorkyError)) {
        feed.answered(answer);
        return topic.confirm();
      }
      const { retryAfterMs } = answer;
      if (retryAfterMs === null && answer.code !== "timeout") {
        feed.end();
        this.#enrolled.delete(topic);
        return this.#events.onRefused(topic, answer);
      }
      const delayMs = (retryAfterMs ?? RETRY_AFTER_MS) * (1 + this.#options.random());
      await this.#wait(delayMs);
      if (isOver()) return;
    }
  }

  /** The answer, or the error that it was. @param {Topic} topic @param {Feed} feed @returns {Promise<unknown>} */
  async #attempt(topic, feed) {
    try {
      return await this.connection.call(topic.service, "subscribe", feed.params, this.#options.callTimeoutMs);
    } catch (error) {
      if (!(error instanceof SnorkyError)) throw error;
      if (error.message !== "Already subscribed") return error;
      // After a timeout the first attempt may have come through all the same.
      if (!feed.recovers) return null;
      await this.#giveUp(topic); // what that one was answered is not known
      feed.clear();
      return this.connection.isOpen ? new SnorkyError("Asked twice", "timeout", 0) : error;
    }
  }

  // -- notifications -------------------------------------------------------------------------------------------

  /** @param {string} service @param {Notification} message */
  #onNotification(service, message) {
    if (service === "gateway") return this.#events.onNotice(service, message);
    const type = message?.type;
    const topic = type === "message" || type === "gap" ? this.#events.find(service, message.channel) : undefined;
    let hasRoom = true;
    if (topic !== undefined) hasRoom = this.#enrolled.get(topic)?.feed.hear(message) ?? true;
    else if (this.#held === null) this.#events.onNotice(service, message);
    else hasRoom = this.#held.push([service, message]) <= HELD_MAX;
    if (!hasRoom) this.connection.close("kept too much"); // a hole would be silent; a new connection is not
  }

  /** Return after `delayMs`, or when the session ends. @param {number} delayMs @returns {Promise<void>} */
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
}

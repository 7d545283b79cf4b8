/**
 * A connection together with its subscriptions.
 *
 * A session delivers the messages of its connection, or buffers them while another session still delivers (a move).
 * The server handles the requests of a connection in order, so `subscribe` may follow `unsubscribe` without waiting.
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
 * @property {(service: string, message: Notification) => void} onNotice a notification that is of no subscribed channel;
 *   in order. While the session buffers, only those of the service "gateway" come; the others after `release`
 * @property {(topic: Topic, message: Notification) => void} onLoose a channel's message without a position
 * @property {(service: string, channel: unknown) => Topic | undefined} find the topic of a channel
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused the server refused; this session does not retry
 *
 * @typedef {import("./connection.js").ConnectionOptions
 *   & {callTimeoutMs: number, random: () => number}} SessionOptions
 * @typedef {Pick<import("./connection.js").ConnectionEvents, "onOpen" | "onFault" | "onEnd">} SocketEvents
 *
 * @typedef {{feed: Feed, answered: Promise<void>}} Enrolment a topic on this session. answered: resolves when the
 *   subscription is confirmed or refused
 */

const RETRY_AFTER_MS = 1_000; // if the server gives no retryAfterMs
// How long after a move this session may still receive messages that the previous one delivered.
const OVERLAP_MS = 500;
const HELD_MAX = 10_000; // buffered notifications; a move takes a few round trips

export class Session {
  #options;
  #events;
  /** @type {Map<Topic, Enrolment>} */
  #enrolled = new Map();
  /** Buffered notifications that are of no channel; null = not buffering. @type {[string, Notification][] | null} */
  #held = null;
  /** Finds duplicates in channels that two sessions deliver during a move. @type {Map<Topic, Overlap>} */
  #overlaps = new Map();
  #hasEnded = false;
  /** Functions that end each wait early. @type {Set<() => void>} */
  #waits = new Set();
  /** The server's grace period once it has announced that it leaves; else null. @type {number | null} */
  movingGraceMs = null;

  /** Start connecting. @param {SessionOptions} options @param {SessionEvents & SocketEvents} events */
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

  /** True while the session buffers messages instead of delivering them. */
  get isHolding() {
    return this.#held !== null;
  }

  /** Subscribe to a topic; retries when the server says that this helps. @param {Topic} topic */
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

  /** Unsubscribe from a topic. @param {Topic} topic */
  unsubscribe(topic) {
    this.#overlaps.delete(topic);
    this.#enrolled.get(topic)?.feed.end();
    if (this.#enrolled.delete(topic) && this.connection.isOpen) void this.#giveUp(topic);
  }

  /** Wait until every topic is confirmed or refused, including those added meanwhile, or the session has ended. */
  async settled() {
    let count = -1;
    while (!this.#hasEnded && count !== this.#enrolled.size) {
      count = this.#enrolled.size;
      await Promise.all([...this.#enrolled.values()].map(({ answered }) => answered));
    }
  }

  /** Buffer messages until `release`. */
  hold() {
    this.#held = [];
  }

  /** Deliver the buffered messages, and later ones as they arrive. */
  release() {
    const held = this.#held ?? [];
    this.#held = null;
    for (const { feed } of [...this.#enrolled.values()]) feed.release();
    for (const [service, message] of held) this.#events.onNotice(service, message);
    if (this.#overlaps.size > 0) void this.#wait(OVERLAP_MS).then(() => this.#overlaps.clear());
  }

  /** Record a message that the previous session delivered. @param {Topic} topic @param {unknown} message */
  note(topic, message) {
    this.#overlaps.get(topic)?.note(message);
  }

  /** Whether the previous session delivered this message already. @param {Topic} topic @param {unknown} message */
  isRepetition(topic, message) {
    return this.#overlaps.get(topic)?.isRepetition(message) ?? false;
  }

  // -- subscriptions -------------------------------------------------------------------------------------------

  /** @param {Topic} topic @param {Promise<void>} [before] wait for it before subscribing */
  #enrol(topic, before) {
    const feed = new Feed(topic, { onLoose: this.#events.onLoose, repair: () => this.#askAnew(topic) }, this.isHolding);
    this.#enrolled.set(topic, { feed, answered: this.#subscribe(topic, feed, before) });
  }

  /** Unsubscribe and subscribe again, with the topic's present position. @param {Topic} topic */
  #askAnew(topic) {
    if (this.#hasEnded || !this.#enrolled.has(topic)) return;
    this.#enrolled.get(topic)?.feed.end();
    this.#enrol(topic, this.#giveUp(topic));
  }

  /** @param {Topic} topic @returns {Promise<void>} */
  async #giveUp(topic) {
    const params = { channel: topic.channel };
    // A refusal means that there was no subscription.
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
      // The topic was unsubscribed, or a later attempt replaced this one: ignore the reply.
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

  /** Return the reply's data, or its error. @param {Topic} topic @param {Feed} feed @returns {Promise<unknown>} */
  async #attempt(topic, feed) {
    try {
      return await this.connection.call(topic.service, "subscribe", feed.params, this.#options.callTimeoutMs);
    } catch (error) {
      if (!(error instanceof SnorkyError)) throw error;
      if (error.message !== "Already subscribed") return error;
      // An earlier attempt timed out here, but succeeded on the server.
      if (!feed.recovers) return null;
      await this.#giveUp(topic); // the messages in its reply are lost: subscribe again
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
    if (!hasRoom) this.connection.close("kept too much"); // a new connection recovers or reports the loss
  }

  /** Wait for `delayMs`, or until the session ends. @param {number} delayMs @returns {Promise<void>} */
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

/**
 * A connection together with its subscriptions.
 *
 * A session delivers the messages of its connection, or buffers them while another session still delivers (a move).
 * The server handles the requests of a connection in order, so `subscribe` may follow `unsubscribe` without waiting.
 */

import { Connection } from "../wire/connection.js";
import { SnorkyError } from "../error.js";
import { Feed } from "../channels/feed.js";
import { Grant } from "./grant.js";
import { Overlap } from "./overlap.js";

/**
 * @typedef {import("../channels/topic.js").Topic} Topic
 * @typedef {import("../wire/connection.js").Notification} Notification
 *
 * @typedef {object} SessionEvents
 * @property {(service: string, message: Notification) => void} onNotice a notification that is of no subscribed channel;
 *   in order. While the session buffers, only those of the service "gateway" come; the others after `release`
 * @property {(topic: Topic, message: Notification) => void} onLoose a channel's message without a position
 * @property {(service: string, channel: unknown) => Topic | undefined} find the topic of a channel
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused the server refused; this session does not retry
 * @property {(topic: Topic, error: SnorkyError) => void} onUnsubscribed the server has ended the subscription for good
 * @property {(service: string, channel: unknown) => Topic | undefined} onSubscribed the backend has subscribed this client
 *   to a channel without a topic; returns a new topic, or undefined: the application does not want it
 * @property {(topic: Topic) => void} onBegun such a topic is enrolled, and its messages follow
 * @property {(topic: Topic, error: SnorkyError) => void} onNoToken there is no token for a channel; the session tries again
 *
 * @typedef {import("../wire/connection.js").ConnectionOptions
 *   & {callTimeoutMs: number, backoffMaxMs: number, random: () => number}} SessionOptions
 * @typedef {Pick<import("../wire/connection.js").ConnectionEvents, "onOpen" | "onFault" | "onEnd">} SocketEvents
 *
 * @typedef {{feed: Feed, grant: Grant, answered: Promise<void>}} Enrolment a topic on this session. answered: resolves
 *   when the subscription is confirmed or refused
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
  /** The unsubscriptions without a reply yet, by topic key: until then, an end of that channel is an old one. @type {Map<string, object>} */
  #leaving = new Map();
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
        for (const enrolment of this.#enrolled.values()) end(enrolment);
        for (const finish of [...this.#waits]) finish();
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
    const enrolment = this.#drop(topic);
    if (enrolment?.feed.wasAsked && this.connection.isOpen) void this.#leave(topic);
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
    const { feed, grant } = this.#parts(topic);
    this.#enrolled.set(topic, { feed, grant, answered: this.#subscribe(topic, feed, grant, before) });
  }

  /** Enrol the topic of a server-side subscription that has begun. @param {Topic} topic @param {Notification} notification */
  #begin(topic, notification) {
    const { feed, grant } = this.#parts(topic);
    this.#enrolled.set(topic, { feed, grant, answered: Promise.resolve() });
    feed.begin();
    topic.confirm();
    this.#events.onBegun(topic);
    feed.answered(notification); // without effect if a handler has closed the subscription
  }

  /** @param {Topic} topic */
  #parts(topic) {
    const { connection } = this;
    const feed = new Feed(topic, {
      onLoose: this.#events.onLoose,
      repair: () => this.#askAnew(topic),
      onUnsubscribed: (_, notification) => this.#onUnsubscribed(topic, notification),
    }, this.isHolding);
    const grant = new Grant(topic, this.#options, {
      refresh: (token) => connection.call(
        topic.service, "refreshSubscription", { channel: topic.channel, token }, this.#options.callTimeoutMs,
      ),
      onError: (error) => this.#events.onNoToken(topic, error),
      onLost: () => this.#askAnew(topic),
    });
    return { feed, grant };
  }

  /** Forget a topic on this session. @param {Topic} topic */
  #drop(topic) {
    const enrolment = this.#enrolled.get(topic);
    if (enrolment !== undefined) end(enrolment);
    this.#overlaps.delete(topic);
    this.#enrolled.delete(topic);
    return enrolment;
  }

  /** Unsubscribe and subscribe again, with the topic's present position. @param {Topic} topic */
  #askAnew(topic) {
    const enrolment = this.#enrolled.get(topic);
    if (this.#hasEnded || enrolment === undefined) return;
    end(enrolment);
    // The backend's subscription begins again without being ended first.
    this.#enrol(topic, topic.isServerSide ? undefined : this.#giveUp(topic));
  }

  /** Subscribe again with the topic's present position: the server has ended its subscription. @param {Topic} topic @param {Enrolment} enrolment */
  #resume(topic, enrolment) {
    end(enrolment);
    const { restMs } = enrolment.grant;
    this.#enrol(topic, restMs > 0 ? this.#wait(restMs) : undefined);
  }

  /** Unsubscribe for the application. @param {Topic} topic */
  async #leave(topic) {
    const mark = {};
    this.#leaving.set(topic.key, mark);
    await this.#giveUp(topic);
    if (this.#leaving.get(topic.key) === mark) this.#leaving.delete(topic.key);
  }

  /** @param {Topic} topic @returns {Promise<void>} */
  async #giveUp(topic) {
    const params = { channel: topic.channel };
    // A refusal means that there was no subscription.
    await this.connection.call(topic.service, "unsubscribe", params, this.#options.callTimeoutMs).catch(() => {});
  }

  /** @param {Topic} topic @param {Feed} feed @param {Grant} grant @param {Promise<void>} [before] */
  async #subscribe(topic, feed, grant, before) {
    const isOver = () => this.#hasEnded || this.#enrolled.get(topic)?.feed !== feed;
    if (before !== undefined) {
      await before;
      if (isOver()) return;
      feed.clear();
    }
    for (;;) {
      const answer = await this.#attempt(topic, feed, grant, isOver);
      // The topic was unsubscribed, or a later attempt replaced this one: ignore the reply.
      if (isOver()) return;
      if (!(answer instanceof SnorkyError)) {
        grant.started(answer);
        feed.answered(answer);
        return topic.confirm();
      }
      const { retryAfterMs } = answer;
      if (retryAfterMs === null && answer.code !== "timeout") {
        this.#drop(topic);
        return this.#events.onRefused(topic, answer);
      }
      const delayMs = (retryAfterMs ?? RETRY_AFTER_MS) * (1 + this.#options.random());
      await this.#wait(delayMs);
      if (isOver()) return;
    }
  }

  /**
   * Return the reply's data, or its error.
   *
   * @param {Topic} topic @param {Feed} feed @param {Grant} grant @param {() => boolean} isOver @returns {Promise<unknown>}
   */
  async #attempt(topic, feed, grant, isOver) {
    const source = topic.token;
    try {
      let token = source;
      if (typeof token === "function") {
        token = (await grant.ask(token)) ?? undefined;
        if (isOver()) return null;
        if (token === undefined) return new SnorkyError("The application gave no token for this channel", "not_authorized");
      }
      return await this.connection.call(topic.service, "subscribe", feed.ask(token), this.#options.callTimeoutMs);
    } catch (error) {
      if (!(error instanceof SnorkyError)) throw error;
      if (error.code === "token_expired" && typeof source === "function") return isOver() ? null : grant.expired(error);
      if (error.message !== "Already subscribed") return error;
      // An earlier attempt timed out here, but succeeded on the server.
      if (!feed.recovers && source === undefined) return null;
      await this.#giveUp(topic); // the messages and the expiry in its reply are lost: subscribe again
      feed.clear();
      return this.connection.isOpen ? new SnorkyError("Asked twice", "timeout", 0) : error;
    }
  }

  // -- notifications -------------------------------------------------------------------------------------------

  /** @param {string} service @param {Notification} message */
  #onNotification(service, message) {
    if (service === "gateway") return this.#events.onNotice(service, message);
    const type = message?.type;
    if (type === "subscribed" && this.#onSubscribed(service, message)) return;
    const isOfChannel = type === "message" || type === "gap" || type === "unsubscribed";
    const topic = isOfChannel ? this.#events.find(service, message.channel) : undefined;
    let hasRoom = true;
    if (topic !== undefined && type === "unsubscribed" && this.#leaving.has(topic.key)) return;
    if (topic !== undefined) hasRoom = this.#enrolled.get(topic)?.feed.hear(message) ?? true;
    else if (this.#held === null) this.#events.onNotice(service, message);
    else hasRoom = this.#held.push([service, message]) <= HELD_MAX;
    if (!hasRoom) this.connection.close("kept too much"); // a new connection recovers or reports the loss
  }

  /** Returns false if the application does not want the subscription. @param {string} service @param {Notification} message */
  #onSubscribed(service, message) {
    const known = this.#events.find(service, message.channel);
    if (known !== undefined) {
      // If it is the application's own, its own `subscribe` brings what it needs.
      if (known.isServerSide && !this.#enrolled.has(known)) this.subscribe(known);
      return true;
    }
    const topic = this.#events.onSubscribed(service, message.channel);
    if (topic !== undefined) {
      topic.recovers = typeof message.position === "string";
      this.#begin(topic, message);
    }
    return topic !== undefined;
  }

  /** @param {Topic} topic @param {Notification} notification */
  #onUnsubscribed(topic, { code, reason }) {
    const enrolment = this.#enrolled.get(topic);
    if (enrolment === undefined) return;
    if (code === "expired" && typeof topic.token === "function") return this.#resume(topic, enrolment);
    if (enrolment.feed.wasAnswered) this.#drop(topic); // else a `subscribe` may be in flight: its topic is unsubscribed
    const text = typeof reason === "string" ? reason : "";
    this.#events.onUnsubscribed(topic, new SnorkyError(text, typeof code === "string" ? code : "unsubscribed"));
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

/** @param {Enrolment} enrolment */
function end({ feed, grant }) {
  feed.end();
  grant.end();
}

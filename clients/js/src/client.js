/**
 * The API for applications: calls, publications and subscriptions over a link that reconnects by itself (link.js).
 *
 * A call is never sent twice: if the connection ends before the reply, it rejects with `disconnected`. A publication
 * has an idempotency key, so it is safe to send again, and is (queue.js). Subscriptions are restored on every new
 * connection (session.js). With `recover` they get the messages they missed, or an event `gap` (feed.js).
 */

import { Queue } from "./channels/queue.js";
import { ServerSubscription, Subscription } from "./channels/subscription.js";
import { Topic, topicKey } from "./channels/topic.js";
import { Emitter } from "./emitter.js";
import { SnorkyError } from "./error.js";
import { settle } from "./options.js";
import { Link } from "./session/link.js";
import { checked } from "./session/token.js";
import { Waiting } from "./session/waiting.js";
import { randomHex } from "./wire/random.js";
import { Request } from "./wire/request.js";
import { plain } from "./wire/values.js";

const ABNORMAL = 1006; // no close frame: here, a refused handshake
const CLOSED_HERE = "closed by the client";

/**
 * @typedef {import("./channels/topic.js").MessageHandler} MessageHandler
 * @typedef {import("./session/grant.js").SubscriptionTokenSource} SubscriptionTokenSource
 * @typedef {import("./wire/connection.js").Notification} Notification
 *
 * @typedef {object} ClientEvents
 * @property {{isMove: boolean, isResync: boolean}} open connected. Subscriptions are requested again; other state that a
 *   service ties to a connection is not. isMove: the connection replaces one whose server is leaving. isResync: the
 *   server closed the last connection with 4010, because data it had sent may be out of date
 * @property {{code: number, reason: string, willReconnect: boolean, status?: number}} close the connection ended. status:
 *   the HTTP status, if the client ends because the handshake was refused
 * @property {{delayMs: number, attempt: number, reason?: string, status?: number}} reconnecting the next attempt starts
 *   in delayMs. reason, status: why the last handshake failed, if known
 * @property {{graceMs: number}} moving the server is leaving; the client opens its next connection
 * @property {ServerSubscription} subscribed the backend has subscribed this client to a channel. The subscription is
 *   restored on later connections. Without a handler of this event, `listen` gets what arrives
 * @property {Notification} notice any message of the service "gateway"
 * @property {{error: SnorkyError, service?: string, channel?: any}} error a subscription that was refused or has ended, an
 *   invalid message, no token, or a handshake refused permanently
 *
 * @typedef {"connecting" | "open" | "waiting" | "closed"} ClientState waiting: for the next attempt to connect
 */

/** A client of a gateway, created by `connect`. It reconnects until `close` is called or the server forbids it. */
export class Client {
  #settings;
  #clock;
  /** @type {Map<string, Topic>} */
  #topics = new Map();
  #waiting;
  #queue;
  #emitter = new Emitter();
  /** Why the client is closed; null while it is not. @type {SnorkyError | null} */
  #end = null;
  #link;

  /**
   * Start connecting. Applications call `connect` instead.
   *
   * @param {string | URL} url @param {import("./options.js").ClientOptions} [options]
   */
  constructor(url, options = {}) {
    this.#settings = settle(url, options);
    this.#clock = this.#settings.clock;
    const offline = () => this.#offline();
    this.#waiting = new Waiting(this.#clock, this.#settings.waitingCallsMax, offline);
    this.#queue = new Queue(this.#settings, offline);
    this.#link = new Link(this.#settings, {
      topics: () => this.#topics.values(),
      find: (service, channel) => this.#topicOf(service, channel),
      onNotice: (service, message) => this.#onNotice(service, message),
      onRefused: (topic, error) => this.#onRefused(topic, error),
      onUnsubscribed: (topic, error) => this.#onUnsubscribed(topic, error),
      onSubscribed: (service, channel) => this.#onSubscribed(service, channel),
      onBegun: (topic) => this.#onBegun(topic),
      onNoToken: ({ service, channel }, error) => this.#emitError({ error, service, channel }),
      onError: (error) => this.#emitError({ error }),
      onOpen: (session, how) => this.#onOpen(session.connection, how),
      onLost: (code, reason) => this.#emit("close", { code, reason, willReconnect: true }),
      onWaiting: (delayMs, attempt, refusal) => this.#emit("reconnecting", { delayMs, attempt, ...why(refusal) }),
      onMoving: (graceMs) => this.#emit("moving", { graceMs }),
      onSessionEnd: (session) => this.#queue.ended(session.connection),
      onEnd: (code, reason, status) => this.#finish(code, reason, status),
    });
  }

  /** The state of the connection. @returns {ClientState} */
  get state() {
    if (this.#end !== null) return "closed";
    if (this.#link.current !== null) return "open";
    return this.#link.isDialling ? "connecting" : "waiting";
  }

  /** The name of the encoding in use: "json" or "msgpack". */
  get encoding() {
    return this.#settings.codec.name;
  }

  /** The number of publications without a reply yet. */
  get queued() {
    return this.#queue.size;
  }

  /**
   * Call a service's command; resolves with the data of its reply.
   *
   * Without a connection the call waits for one. Rejects with SnorkyError (codes: error.js). Rejects at once, with
   * nothing sent, with TypeError or RangeError: the gateway would not accept the parameters (values.js).
   *
   * @param {string} service @param {string} command @param {object} [params] @param {{timeoutMs?: number}} [options]
   * @returns {Promise<any>}
   */
  async call(service, command, params = {}, { timeoutMs = this.#settings.callTimeoutMs } = {}) {
    if (this.#end !== null) throw this.#end;
    const request = new Request(service, command, params, this.#settings);
    const current = this.#link.current;
    if (current !== null) return current.connection.send(request, timeoutMs);
    const deadlineMs = this.#clock.now() + timeoutMs;
    const connection = await this.#waiting.connection(timeoutMs);
    return connection.send(request, deadlineMs - this.#clock.now());
  }

  /**
   * Publish a message to a channel once; resolves when the server has accepted it.
   *
   * Waits for a connection if there is none. timeoutMs limits the whole (default: publishMaxAgeMs). A client with an
   * identity sends the message again under the same idempotency key while its outcome is unknown. Messages are sent in
   * the order of the calls. Rejects with SnorkyError (codes: queue.js, error.js). Rejects at once with TypeError or
   * RangeError: the gateway would not accept the message (values.js).
   *
   * @param {any} channel any JSON entity @param {any} message
   * @param {{service?: string, key?: string, timeoutMs?: number}} [options] key: your own idempotency key, if you repeat
   *   publications yourself; messages with the same key are published once
   * @returns {Promise<any>}
   */
  async publish(channel, message, { service = "pubsub", key, timeoutMs } = {}) {
    if (this.#end !== null) throw this.#end;
    const maxAgeMs = timeoutMs ?? this.#settings.publishMaxAgeMs;
    // Without an identity the server knows a key on this connection only, and storing it costs as much.
    const onceKey = key ?? (this.#settings.hasIdentity ? randomHex(16) : null);
    return this.#queue.add({ service, channel, message, key: onceKey, maxAgeMs });
  }

  /**
   * Subscribe to a channel, across reconnects, until the returned subscription is closed.
   *
   * Its `ready` resolves when the server has confirmed the subscription and rejects if the server refuses; a refused
   * subscription is requested again on the next connection. All handlers of a channel share one subscription.
   *
   * recover: after a reconnect, the messages published meanwhile are delivered in order and once. If some are no
   * longer available, the subscription emits `gap`; on a channel without history every reconnect does. Instead of
   * true, a position (`info.position`, `subscription.position`): recover from there, for example after a page reload.
   *
   * token: a subscription token, or a function that gives one, also a promise of one. It is called with the channel for
   * each request to subscribe, and before its last token expires. If it fails, or gives no text within callTimeoutMs, the
   * client emits `error` and calls it again, with backoff. null: the client may not subscribe.
   *
   * Throws TypeError or RangeError if the channel is not JSON, has no canonical form, or one above 255 bytes; if the token
   * is not valid; or if a position is given for a channel that has handlers, because these have a position already.
   *
   * @param {any} channel any JSON entity @param {MessageHandler} handler
   * @param {{service?: string, recover?: boolean | string | null, token?: SubscriptionTokenSource}} [options]
   * @returns {Subscription}
   */
  subscribe(channel, handler, { service = "pubsub", recover = false, token } = {}) {
    const wanted = plain(channel); // a copy: later changes by the application have no effect
    const text = token === undefined || typeof token === "function" ? "" : checked(token);
    void new Request(service, "subscribe", { channel: wanted, recover, token: text }, this.#settings); // throws if not acceptable
    const key = topicKey(service, wanted);
    let topic = this.#topics.get(key);
    if (typeof recover === "string" && topic !== undefined) {
      throw new TypeError("This channel has a subscription already, which recovers from its own position only");
    }
    if (topic === undefined) {
      topic = new Topic(service, wanted);
      this.#topics.set(key, topic);
    }
    if (recover !== false) topic.recovers = true; // null: the `position` of a subscription that has none yet
    if (typeof recover === "string") topic.sequence.moveTo(recover);
    const leave = topic.join(handler, token);
    if (this.#end !== null) topic.refuse(this.#end);
    this.#link.current?.subscribe(topic);
    this.#link.next?.subscribe(topic);
    return new Subscription(topic, () => this.#leave(topic, leave));
  }

  /**
   * Listen to the notifications of a service that do not belong to a subscribed channel (of `chat`, your own services,
   * ...). Returns a function that removes the handler.
   *
   * @param {string} service @param {(notification: Notification) => void} handler
   * @returns {() => void}
   */
  listen(service, handler) {
    return this.#emitter.on(`service ${service}`, handler);
  }

  /**
   * Listen to an event of the client. Returns a function that removes the handler.
   *
   * @template {keyof ClientEvents} E
   * @param {E} event @param {(event: ClientEvents[E]) => void} handler
   * @returns {() => void}
   */
  on(event, handler) {
    return this.#emitter.on(event, handler);
  }

  /** Close the connection; subscriptions end, pending calls and publications reject. Idempotent. */
  close() {
    this.#finish(1000, CLOSED_HERE, null);
  }

  // -- connections ---------------------------------------------------------------------------------------------

  /** @param {import("./wire/connection.js").Connection} connection @param {ClientEvents["open"]} how */
  #onOpen(connection, how) {
    this.#emit("open", how); // a handler may close the client; then no call waits any more
    this.#waiting.release(connection);
    this.#queue.use(connection);
  }

  /** @param {number} code @param {string} reason @param {number | null} status */
  #finish(code, reason, status) {
    if (this.#end !== null) return;
    const error = new SnorkyError(reason === CLOSED_HERE ? "The client is closed" : endText(code, reason), "closed", null, status);
    this.#end = error;
    this.#link.close();
    this.#waiting.close(error);
    this.#queue.close(error);
    for (const topic of this.#topics.values()) topic.refuse(error);
    this.#topics.clear();
    this.#emit("close", { code, reason, willReconnect: false, ...(status === null ? {} : { status }) });
  }

  #offline() {
    const refusal = this.#link.refusal;
    const text = refusal === null ? "No connection in time" : `No connection in time: ${refusal.text}`;
    return new SnorkyError(text, "offline", null, refusal?.status);
  }

  // -- subscriptions -------------------------------------------------------------------------------------------

  /** @param {Topic} topic @param {() => void} leave */
  #leave(topic, leave) {
    leave();
    if (topic.isWanted || this.#topics.get(topic.key) !== topic) return;
    this.#topics.delete(topic.key);
    topic.refuse(new SnorkyError("The subscription is closed", "closed"));
    this.#link.current?.unsubscribe(topic);
    this.#link.next?.unsubscribe(topic);
  }

  /** @param {Topic} topic @param {SnorkyError} error */
  #onRefused(topic, error) {
    if (topic.isServerSide) this.#onUnsubscribed(topic, error); // only the backend begins it again
    else this.#giveUp(topic, error);
  }

  /** Add the topic of a server-side subscription, if a handler wants it. @param {string} service @param {any} channel */
  #onSubscribed(service, channel) {
    if (this.#end !== null || !this.#emitter.has("subscribed")) return undefined;
    try {
      const topic = new Topic(service, channel, true);
      this.#topics.set(topic.key, topic);
      return topic;
    } catch {
      return undefined; // no canonical form: not a channel of a gateway
    }
  }

  /** @param {Topic} topic */
  #onBegun(topic) {
    const subscription = new ServerSubscription(topic, () => {
      topic.isServerSide = false;
      this.#leave(topic, () => topic.clear());
    });
    this.#emit("subscribed", subscription);
  }

  /** @param {Topic} topic @param {SnorkyError} error */
  #onUnsubscribed(topic, error) {
    if (this.#topics.get(topic.key) === topic) this.#topics.delete(topic.key);
    this.#giveUp(topic, error);
  }

  /** Report that a topic has no subscription on any connection. @param {Topic} topic @param {SnorkyError} error */
  #giveUp(topic, error) {
    const hasEnded = topic.isConfirmed;
    topic.refuse(error);
    this.#link.current?.unsubscribe(topic); // during a move, another connection may still deliver it
    this.#link.next?.unsubscribe(topic);
    if (hasEnded) topic.ended(error);
    this.#emitError({ error, service: topic.service, channel: topic.channel });
  }

  /** @param {string} service @param {Notification} message */
  #onNotice(service, message) {
    if (service === "gateway") this.#emit("notice", message);
    else this.#emitter.emit(`service ${service}`, message);
  }

  /** @param {string} service @param {unknown} channel */
  #topicOf(service, channel) {
    try {
      return this.#topics.get(topicKey(service, channel));
    } catch {
      return undefined; // no canonical form, so this client cannot have subscribed to it
    }
  }

  // -- events --------------------------------------------------------------------------------------------------

  /** @template {keyof ClientEvents} E @param {E} event @param {ClientEvents[E]} detail */
  #emit(event, detail) {
    this.#emitter.emit(event, detail);
  }

  /** @param {ClientEvents["error"]} detail */
  #emitError(detail) {
    if (!this.#emitter.emit("error", detail)) console.warn("snorky:", detail.error.message, detail);
  }
}

/** @param {number} code @param {string} reason */
function endText(code, reason) {
  return code === ABNORMAL ? reason : `The server has ended the connection permanently: ${code} ${reason}`.trimEnd();
}

/** The fields of an event that describe a refused handshake. @param {import("./wire/refusal.js").Refusal | null} refusal */
function why(refusal) {
  if (refusal === null) return {};
  const { text, status } = refusal;
  return status === null ? { reason: text } : { reason: text, status };
}

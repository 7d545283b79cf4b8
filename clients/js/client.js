/**
 * A client of a gateway: what an application asks for, on a link that is kept open.
 *
 * Calls are never sent twice: what was in flight when a connection ended rejects with `disconnected`. Publications have
 * a key that makes repeating them safe, and are repeated (queue.js). Subscriptions stand again on every connection
 * (session.js); those that recover miss nothing, or it is told (feed.js).
 */

import { Emitter } from "./emitter.js";
import { SnorkyError } from "./error.js";
import { Link } from "./link.js";
import { settle } from "./options.js";
import { Queue } from "./queue.js";
import { randomHex } from "./random.js";
import { Request } from "./request.js";
import { Subscription } from "./subscription.js";
import { Topic, topicKey } from "./topic.js";
import { plain } from "./values.js";
import { Waiting } from "./waiting.js";

const ABNORMAL = 1006; // no close frame: here, a refused handshake
const CLOSED_HERE = "closed by the client";

/**
 * @typedef {import("./topic.js").MessageHandler} MessageHandler
 * @typedef {import("./connection.js").Notification} Notification
 *
 * @typedef {object} ClientEvents
 * @property {{isMove: boolean, isResync: boolean}} open subscriptions are requested; what a service ties to the
 *   connection is not. isResync: the server closed the last one because what it had told is not sure any more (4010)
 * @property {{code: number, reason: string, willReconnect: boolean, status?: number}} close status: of HTTP, if the end
 *   is that the handshake was refused
 * @property {{delayMs: number, attempt: number, reason?: string, status?: number}} reconnecting reason, status: why the
 *   last handshake failed, if that is known
 * @property {{graceMs: number}} moving the server is leaving; the client opens its next connection
 * @property {Notification} notice any message of the service "gateway"
 * @property {{error: SnorkyError, service?: string, channel?: any}} error a refused subscription, a bad message, no token, a
 *   handshake that is refused for good
 *
 * @typedef {"connecting" | "open" | "waiting" | "closed"} ClientState waiting: until the next attempt
 */

export class Client {
  #settings;
  #clock;
  /** @type {Map<string, Topic>} */
  #topics = new Map();
  #waiting;
  #queue;
  #emitter = new Emitter();
  /** Why there will be no connection. @type {SnorkyError | null} */
  #end = null;
  #link;

  /** Dial. Use `connect`. @param {string | URL} url @param {import("./options.js").ClientOptions} [options] */
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
      onError: (error) => this.#emitError({ error }),
      onOpen: (session, how) => this.#onOpen(session.connection, how),
      onLost: (code, reason) => this.#emit("close", { code, reason, willReconnect: true }),
      onWaiting: (delayMs, attempt, refusal) => this.#emit("reconnecting", { delayMs, attempt, ...why(refusal) }),
      onMoving: (graceMs) => this.#emit("moving", { graceMs }),
      onSessionEnd: (session) => this.#queue.ended(session.connection),
      onEnd: (code, reason, status) => this.#finish(code, reason, status),
    });
  }

  /** @returns {ClientState} */
  get state() {
    if (this.#end !== null) return "closed";
    if (this.#link.current !== null) return "open";
    return this.#link.isDialling ? "connecting" : "waiting";
  }

  /** Name of the encoding in use. */
  get encoding() {
    return this.#settings.codec.name;
  }

  /** Publications that the server has not answered yet. */
  get queued() {
    return this.#queue.size;
  }

  /**
   * Ask a service to do something; returns its answer's data.
   *
   * Without a connection the call waits for one. Rejects with SnorkyError (codes: error.js); at once and with nothing
   * sent with TypeError or RangeError: the gateway would refuse the parameters (values.js).
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
   * Publish to a channel, once; resolves when the server took the message.
   *
   * It waits for a connection, for `timeoutMs` in all (default: publishMaxAgeMs). Who has an identity sends it again under
   * the same key while its outcome is not known. Messages go out in the order of the calls. Rejects with SnorkyError
   * (codes: queue.js, error.js); at once with TypeError or RangeError: the gateway would refuse it (values.js).
   *
   * @param {any} channel any JSON entity @param {any} message
   * @param {{service?: string, key?: string, timeoutMs?: number}} [options] key: of your own, if you repeat publications
   *   yourself; what has the same key is published once
   * @returns {Promise<any>}
   */
  async publish(channel, message, { service = "pubsub", key, timeoutMs } = {}) {
    if (this.#end !== null) throw this.#end;
    const maxAgeMs = timeoutMs ?? this.#settings.publishMaxAgeMs;
    // Without an identity a key would be good for this connection only, and cost the server as much.
    const onceKey = key ?? (this.#settings.hasIdentity ? randomHex(16) : null);
    return this.#queue.add({ service, channel, message, key: onceKey, maxAgeMs });
  }

  /**
   * Hear the messages of a channel, over all reconnects, until `close` of what is returned.
   *
   * `ready` of what is returned resolves when the server has confirmed and rejects if it refuses; a refused
   * subscription is asked for again on the next connection. Handlers of one channel share one subscription.
   *
   * recover: what is published while there is no connection comes when there is one again, in order and once; what
   * cannot be had any more is told by the event `gap` of what is returned. It takes a channel that keeps history. A
   * position (`info.position`, `subscription.position`) instead of true: from there on, for a page that was reloaded.
   *
   * Throws TypeError, RangeError if the channel is no JSON, has no canonical form, or one of more than 255 bytes; or if a
   * position is given for a channel that has handlers: these have a position already.
   *
   * @param {any} channel any JSON entity @param {MessageHandler} handler
   * @param {{service?: string, recover?: boolean | string | null}} [options]
   * @returns {Subscription}
   */
  subscribe(channel, handler, { service = "pubsub", recover = false } = {}) {
    const wanted = plain(channel); // what the application does with it later changes nothing
    void new Request(service, "subscribe", { channel: wanted, recover }, this.#settings); // would it be taken?
    const key = topicKey(service, wanted);
    let topic = this.#topics.get(key);
    if (typeof recover === "string" && topic !== undefined) {
      throw new TypeError("This channel is subscribed to: it can be recovered from where it stands only");
    }
    if (topic === undefined) {
      topic = new Topic(service, wanted);
      this.#topics.set(key, topic);
    }
    if (recover !== false) topic.recovers = true; // null: a position that there was none of
    if (typeof recover === "string") topic.sequence.moveTo(recover);
    const leave = topic.join(handler);
    if (this.#end !== null) topic.refuse(this.#end);
    this.#link.current?.subscribe(topic);
    this.#link.next?.subscribe(topic);
    return new Subscription(topic, () => this.#leave(topic, leave));
  }

  /**
   * Hear the notifications of a service that are no channel's messages (of your own services, `chat`, ...).
   * Returns what ends it.
   *
   * @param {string} service @param {(notification: Notification) => void} handler
   * @returns {() => void}
   */
  listen(service, handler) {
    return this.#emitter.on(`service ${service}`, handler);
  }

  /**
   * Hear what happens to the connection. Returns what ends it.
   *
   * @template {keyof ClientEvents} E
   * @param {E} event @param {(event: ClientEvents[E]) => void} handler
   * @returns {() => void}
   */
  on(event, handler) {
    return this.#emitter.on(event, handler);
  }

  /** End it all: the connection, its subscriptions, its calls, what waits to be published. Idempotent. */
  close() {
    this.#finish(1000, CLOSED_HERE, null);
  }

  // -- connections ---------------------------------------------------------------------------------------------

  /** @param {import("./connection.js").Connection} connection @param {ClientEvents["open"]} how */
  #onOpen(connection, how) {
    this.#emit("open", how); // a handler may close the client; then nobody waits any more
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
    topic.refuse(error);
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
      return undefined; // no canonical form: not a channel that anybody here can have asked for
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
  return code === ABNORMAL ? reason : `The server has ended the connection for good: ${code} ${reason}`.trimEnd();
}

/** The fields of an event that describe a refused handshake. @param {import("./refusal.js").Refusal | null} refusal */
function why(refusal) {
  if (refusal === null) return {};
  const { text, status } = refusal;
  return status === null ? { reason: text } : { reason: text, status };
}

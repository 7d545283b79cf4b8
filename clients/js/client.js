/**
 * A client of a gateway: one connection at a time, kept alive, with everything that is wanted standing on it.
 *
 * Theory of operation. `#current` is the line that calls go to and that delivers; `#next` is the line being
 * dialled. A line that opens gets all subscriptions. Without a current line it takes over at once; with one (a
 * move: the server is about to leave) it holds what it brings until its subscriptions are confirmed and the old
 * line has answered a last call, so that nothing falls between the two. What both brought is dropped once, as far
 * as contents can tell (overlap.js). The old line closes when its calls are answered.
 *
 * Calls are never sent twice: what was in flight when a connection ended rejects with `disconnected`.
 */

import { Backoff } from "./backoff.js";
import { Emitter } from "./emitter.js";
import { SnorkyError } from "./error.js";
import { Line } from "./line.js";
import { settle } from "./options.js";
import { Subscription, Topic, topicKey } from "./topic.js";

/**
 * @typedef {import("./topic.js").MessageHandler} MessageHandler
 * @typedef {import("./connection.js").Notification} Notification
 *
 * @typedef {object} ClientEvents
 * @property {{isMove: boolean}} open subscriptions are requested; what a service ties to the connection is not
 * @property {{code: number, reason: string, willReconnect: boolean}} close
 * @property {{delayMs: number, attempt: number}} reconnecting
 * @property {{graceMs: number}} moving the server is leaving; the client opens its next connection
 * @property {Notification} notice any message of the service "gateway"
 * @property {{error: SnorkyError, service?: string, channel?: any}} error a refused subscription, a bad message
 *

 * @typedef {"connecting" | "open" | "waiting" | "closed"} ClientState waiting: until the next attempt
 *
 * @typedef {object} WaitingCall
 * @property {(line: Line) => void} send
 * @property {(error: SnorkyError) => void} reject
 */

// A connection that lives shorter proves nothing: a node that accepts and closes is backed off from as well.
const STABLE_MS = 5_000;
// How long the old line may take to answer its last call. Longer and it is no better than gone.
const FENCE_TIMEOUT_MS = 1_000;
// Close codes that mean "not again" (PROTOCOL, close codes).
const isTerminal = (/** @type {number} */ code) => code >= 4500 && code <= 4999;

export class Client {
  #options;
  #clock;
  #backoff;
  /** @type {Line | null} */
  #current = null;
  /** @type {Line | null} */
  #next = null;
  /** @type {Map<string, Topic>} */
  #topics = new Map();
  /** @type {Set<WaitingCall>} */
  #waiting = new Set();
  /** Lines that have moved and still await answers. @type {Set<Line>} */
  #leaving = new Set();
  #emitter = new Emitter();
  #cancelDialling = () => {};
  #isClosed = false;

  /** Dial. Use `connect`. @param {string | URL} url @param {import("./options.js").ClientOptions} [options] */
  constructor(url, options = {}) {
    this.#options = settle(url, options);
    this.#clock = this.#options.clock;
    this.#backoff = new Backoff({
      baseMs: this.#options.backoffBaseMs,
      maxMs: this.#options.backoffMaxMs,
      random: this.#options.random,
    });
    this.#dial();
  }

  /** @returns {ClientState} */
  get state() {
    if (this.#isClosed) return "closed";
    if (this.#current !== null) return "open";
    return this.#next !== null ? "connecting" : "waiting";
  }

  /** Name of the encoding in use. */
  get encoding() {
    return this.#options.codec.name;
  }

  /**
   * Ask a service to do something; returns its answer's data.
   *
   * Without a connection the call waits for one. Rejects with SnorkyError (codes: error.js).
   *
   * @param {string} service @param {string} command @param {object} [params] @param {{timeoutMs?: number}} [options]
   * @returns {Promise<any>}
   */
  async call(service, command, params = {}, { timeoutMs = this.#options.callTimeoutMs } = {}) {
    if (this.#isClosed) throw closed();
    if (this.#current !== null) return this.#current.connection.call(service, command, params, timeoutMs);
    if (this.#waiting.size >= this.#options.waitingCallsMax) throw offline("Too many calls wait for a connection");
    const deadlineMs = this.#clock.now() + timeoutMs;
    const line = await this.#connected(timeoutMs);
    return line.connection.call(service, command, params, deadlineMs - this.#clock.now());
  }

  /**
   * Publish to a channel; resolves when the server took the message, as `call` does.
   *
   * @param {any} channel any JSON entity @param {any} message @param {{service?: string, timeoutMs?: number}} [options]
   * @returns {Promise<any>}
   */
  publish(channel, message, { service = "pubsub", timeoutMs } = {}) {
    return this.call(service, "publish", { channel, message }, { timeoutMs });
  }

  /**
   * Hear the messages of a channel, over all reconnects, until `close` of what is returned.
   *
   * `ready` of what is returned resolves when the server has confirmed and rejects if it refuses; a refused
   * subscription is asked for again on the next connection. Handlers of one channel share one subscription.
   * Throws TypeError if the channel has no canonical form, or one of more than 255 bytes.
   *
   * @param {any} channel any JSON entity @param {MessageHandler} handler @param {{service?: string}} [options]
   * @returns {Subscription}
   */
  subscribe(channel, handler, { service = "pubsub" } = {}) {
    const key = topicKey(service, channel);
    let topic = this.#topics.get(key);
    if (topic === undefined) {
      topic = new Topic(service, channel);
      this.#topics.set(key, topic);
    }
    const leave = topic.join(handler);
    if (this.#isClosed) topic.refuse(closed());
    this.#current?.subscribe(topic);
    this.#next?.subscribe(topic);
    return new Subscription(topic, () => this.#leave(topic, leave));
  }

  /**
   * Hear the notifications of a service that are no channel's messages (of your own services, `chat`, ...).
   * Returns what ends it.
   *
   * @param {string} service @param {(notification: Notification) => void} handler
   */
  listen(service, handler) {
    return this.#emitter.on(`service ${service}`, handler);
  }

  /**
   * Hear what happens to the connection. Returns what ends it.
   *
   * @template {keyof ClientEvents} E
   * @param {E} event @param {(event: ClientEvents[E]) => void} handler
   */
  on(event, handler) {
    return this.#emitter.on(event, handler);
  }

  /** End it all: the connection, its subscriptions, its calls. Idempotent. */
  close() {
    this.#finish(1000, "closed by the client");
  }

  // -- connections ---------------------------------------------------------------------------------------------

  #dial() {
    this.#cancelDialling();
    if (this.#isClosed || this.#next !== null) return;
    /** @type {Line} */
    const line = new Line(this.#options, {
      onOpen: () => this.#onOpen(line),
      onNotification: (service, message) => this.#onNotification(line, service, message),
      onRefused: (topic, error) => this.#onRefused(topic, error),
      onFault: (error) => this.#emitError({ error }),
      onEnd: (code, reason) => this.#onEnd(line, code, reason),
    });
    this.#next = line;
  }

  /** @param {number} delayMs */
  #dialAfter(delayMs) {
    this.#cancelDialling();
    this.#cancelDialling = this.#clock.after(delayMs, () => this.#dial());
  }

  /** @param {Line} line */
  #onOpen(line) {
    line.openedAtMs = this.#clock.now();
    if (this.#current !== null) line.hold();
    for (const topic of this.#topics.values()) line.subscribe(topic);
    if (this.#current === null) this.#promote(line);
    else void this.#takeOver(line, this.#current);
  }

  /** @param {Line} line @param {Line} old */
  async #takeOver(line, old) {
    await line.settled();
    // The answer comes after everything that the old node had sent before: a fence.
    if (this.#next === line) await old.connection.call("gateway", "info", {}, FENCE_TIMEOUT_MS).catch(() => {});
    // Either line may have ended meanwhile; then somebody else has decided.
    if (this.#next === line) this.#promote(line);
  }

  /** Make the next line the current one. @param {Line} line */
  #promote(line) {
    const old = this.#current;
    const isMove = line.isHolding;
    this.#current = line;
    this.#next = null;
    if (old !== null) {
      this.#leaving.add(old);
      old.connection.finish();
    }
    line.release();
    if (this.#current === line) this.#emit("open", { isMove }); // a handler may have closed the client
    for (const call of [...this.#waiting]) call.send(line);
    if (line.movingGraceMs !== null) this.#move(line, line.movingGraceMs);
  }

  /** @param {Line} line @param {number} code @param {string} reason */
  #onEnd(line, code, reason) {
    this.#leaving.delete(line);
    if (this.#isClosed || (line !== this.#current && line !== this.#next)) return;
    if (isTerminal(code)) return this.#finish(code, reason);
    if (this.#clock.now() - line.openedAtMs >= STABLE_MS) this.#backoff.reset();
    if (line === this.#next) {
      this.#next = null;
    } else {
      this.#current = null;
      if (this.#next?.connection.isOpen) return this.#promote(this.#next);
      this.#emit("close", { code, reason, willReconnect: true });
      if (this.#isClosed || this.#next !== null) return; // an application may close in its handler
    }
    const delayMs = this.#backoff.next();
    this.#dialAfter(delayMs);
    if (this.#current === null) this.#emit("reconnecting", { delayMs, attempt: this.#backoff.failures });
  }

  /**
   * Dial the next connection within half of the time that is left: not all clients of a node at once, and not
   * before a load balancer knows that the node is leaving.
   *
   * @param {Line} line @param {number} graceMs
   */
  #move(line, graceMs) {
    line.movingGraceMs = graceMs;
    if (line !== this.#current || this.#next !== null) return;
    this.#dialAfter((this.#options.random() * graceMs) / 2);
  }

  /** @param {number} code @param {string} reason */
  #finish(code, reason) {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#cancelDialling();
    for (const line of [this.#current, this.#next, ...this.#leaving]) line?.connection.close();
    this.#current = null;
    this.#next = null;
    for (const call of [...this.#waiting]) call.reject(closed());
    for (const topic of this.#topics.values()) topic.refuse(closed());
    this.#topics.clear();
    this.#emit("close", { code, reason, willReconnect: false });
  }

  /** The line that is current within `timeoutMs`. @param {number} timeoutMs @returns {Promise<Line>} */
  #connected(timeoutMs) {
    return new Promise((resolve, reject) => {
      const done = () => {
        cancel();
        this.#waiting.delete(call);
      };
      /** @type {WaitingCall} */
      const call = {
        send: (line) => (done(), resolve(line)),
        reject: (error) => (done(), reject(error)),
      };
      const cancel = this.#clock.after(timeoutMs, () => call.reject(offline("No connection in time")));
      this.#waiting.add(call);
    });
  }

  // -- subscriptions -------------------------------------------------------------------------------------------

  /** @param {Topic} topic @param {() => void} leave */
  #leave(topic, leave) {
    leave();
    if (topic.isWanted || this.#topics.get(topic.key) !== topic) return;
    this.#topics.delete(topic.key);
    topic.refuse(closed());
    this.#current?.unsubscribe(topic);
    this.#next?.unsubscribe(topic);
  }

  /** @param {Topic} topic @param {SnorkyError} error */
  #onRefused(topic, error) {
    topic.refuse(error);
    this.#emitError({ error, service: topic.service, channel: topic.channel });
  }

  /** @param {Line} line @param {string} service @param {Notification} message */
  #onNotification(line, service, message) {
    if (this.#isClosed) return; // by a handler, while held messages are released
    if (service === "gateway") {
      this.#emit("notice", message);
      if (message?.type === "moving" && line.movingGraceMs === null) {
        const graceMs = typeof message.graceMs === "number" ? message.graceMs : 0;
        this.#emit("moving", { graceMs });
        this.#move(line, graceMs);
      }
      return;
    }
    const topic = message?.type === "message" ? this.#topicOf(service, message.channel) : undefined;
    if (topic === undefined) return void this.#emitter.emit(`service ${service}`, message);
    if (line.isRepetition(topic, message.message)) return;
    if (line === this.#current) this.#next?.note(topic, message.message);
    topic.deliver(message);
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

function closed() {
  return new SnorkyError("The client is closed", "closed");
}

/** @param {string} text */
function offline(text) {
  return new SnorkyError(text, "offline");
}

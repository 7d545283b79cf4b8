/**
 * One WebSocket from its handshake to its end: calls with their replies, and notifications.
 *
 * Invariants:
 * - `onEnd` is called exactly once, and no other callback after it.
 * - Every call settles: with a reply, a timeout, or a rejection when the connection ends. No call is sent twice.
 * - Only a reply from the service that was called settles a call. Call IDs begin with 64 random bits that only the
 *   gateway learns, so a message from another client cannot pass for a reply.
 */

import { SnorkyError } from "../error.js";
import { randomHex } from "./random.js";
import { refusalOf } from "./refusal.js";
import { Request } from "./request.js";

/**
 * The part of the WebSocket API that this client uses. Browsers, Node >= 22 and the package `ws` provide it.
 *
 * @typedef {object} Socket
 * @property {string} binaryType
 * @property {any} onopen
 * @property {any} onmessage
 * @property {any} onclose
 * @property {any} onerror
 * @property {(data: any) => void} send
 * @property {(code?: number, reason?: string) => void} close
 *
 * @typedef {new (url: string, protocols?: string | string[]) => Socket} SocketClass
 *
 * @typedef {object} ConnectionOptions
 * @property {string} url
 * @property {string[]} subprotocols those that the handshake offers: one for the encoding, one for the token
 * @property {SocketClass} WebSocket
 * @property {import("./json.js").Codec} codec
 * @property {number} messageMaxBytes
 * @property {import("../clock.js").Clock} clock
 * @property {number} connectTimeoutMs a socket that is not open after this time is closed
 * @property {number} probeAfterMs time without any message after which the server is probed; 0: never
 * @property {number} probeTimeoutMs time without any message after the probe until the connection counts as dead
 *
 * @typedef {object} ConnectionEvents
 * @property {() => void} onOpen
 * @property {(service: string, message: Notification) => void} onNotification every message that is not a reply
 * @property {(error: SnorkyError) => void} onFault a message was invalid, the server's or ours; the connection stays open
 * @property {(code: number, reason: string, refusal: import("./refusal.js").Refusal | null) => void} onEnd refusal: why
 *   the handshake failed, if the socket reports it
 *
 * @typedef {Record<string, unknown> & {type?: unknown}} Notification
 *
 * @typedef {object} Call
 * @property {Request} request
 * @property {(data: any) => void} resolve
 * @property {(error: SnorkyError) => void} reject
 * @property {() => void} cancelTimeout
 */

// RFC 6455 7.1.5: closed without a close frame.
const ABNORMAL = 1006;
const NORMAL = 1000;
const TOO_LARGE = 1009; // RFC 6455 7.4.1: the client's message is larger than the server accepts

export class Connection {
  #options;
  #events;
  #socket;
  /** @type {"connecting" | "open" | "ended"} */
  #state = "connecting";
  /** @type {Map<string, Call>} */
  #calls = new Map();
  #callIdPrefix = randomHex(8);
  #lastCall = 0;
  /** @type {import("./refusal.js").Refusal | null} */
  #refusal = null;
  #faults = 0; // messages of ours that the server could not parse
  #heardAtMs;
  #isFinishing = false;
  #cancelTimer;

  /** Start connecting. @param {ConnectionOptions} options @param {ConnectionEvents} events */
  constructor(options, events) {
    this.#options = options;
    this.#events = events;
    this.#heardAtMs = options.clock.now();
    const socket = new options.WebSocket(options.url, options.subprotocols);
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#onOpen();
    socket.onmessage = (/** @type {{data: string | ArrayBuffer}} */ event) => this.#onMessage(event.data);
    socket.onclose = (/** @type {{code: number, reason: string}} */ event) => this.#end(event.code, event.reason);
    socket.onerror = (/** @type {unknown} */ event) => {
      // Once open, a close event follows. While connecting, some WebSockets (Node 20's) send no close event.
      if (this.#state !== "connecting") return;
      this.#refusal = refusalOf(event);
      this.#end(ABNORMAL, "");
    };
    this.#cancelTimer = options.clock.after(options.connectTimeoutMs, () => this.#abandon("connecting took too long"));
  }

  get isOpen() {
    return this.#state === "open";
  }

  /**
   * Build a request, send it and return its reply. Rejects as `send` does, and with the errors that Request throws.
   *
   * @param {string} service @param {string} command @param {object} params @param {number} timeoutMs
   * @returns {Promise<any>}
   */
  call(service, command, params, timeoutMs) {
    try {
      return this.send(new Request(service, command, params, this.#options), timeoutMs);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /**
   * Send a request and return its reply.
   *
   * Rejects with SnorkyError: the server's error, `timeout`, `disconnected` or `too_large`; `invalid_message`: there was
   * no reply in time, and meanwhile the server reported a message that it could not parse.
   *
   * @param {Request} request @param {number} timeoutMs
   * @returns {Promise<any>}
   */
  send(request, timeoutMs) {
    if (this.#state !== "open") return Promise.reject(disconnected());
    const callId = `${this.#callIdPrefix}.${++this.#lastCall}`;
    const data = request.encode(callId);
    const faults = this.#faults;
    return new Promise((resolve, reject) => {
      const cancelTimeout = this.#options.clock.after(timeoutMs, () => {
        const text = `No answer to ${request.service}.${request.command} in time`;
        // The server would not parse the message the next time either: it must not be sent again.
        const code = this.#faults === faults ? "timeout" : "invalid_message";
        this.#settle(callId)?.reject(new SnorkyError(text, code));
      });
      this.#calls.set(callId, { request, resolve, reject, cancelTimeout });
      this.#socket.send(data);
    });
  }

  /** Close now: calls in flight reject, later messages are ignored. @param {string} [reason] for the server's log */
  close(reason = "") {
    this.#end(NORMAL, reason);
    this.#socket.close(NORMAL, reason);
  }

  /** Close once the calls in flight have settled; notifications are ignored from now on. */
  finish() {
    this.#isFinishing = true;
    if (this.#calls.size === 0) this.close("moved");
  }

  #onOpen() {
    if (this.#state !== "connecting") return;
    this.#state = "open";
    this.#heardAtMs = this.#options.clock.now();
    this.#cancelTimer();
    if (this.#options.probeAfterMs > 0) this.#watch(this.#options.probeAfterMs);
    this.#events.onOpen();
  }

  /** @param {string | ArrayBuffer} data */
  #onMessage(data) {
    if (this.#state !== "open") return;
    this.#heardAtMs = this.#options.clock.now();
    let envelope;
    try {
      envelope = /** @type {any} */ (this.#options.codec.decode(data));
    } catch (error) {
      this.#events.onFault(new SnorkyError(`Undecodable message: ${error}`, "invalid_message"));
      return;
    }
    const message = envelope?.message;
    if (typeof envelope?.service !== "string") {
      this.#events.onFault(new SnorkyError("Message without a service", "invalid_message"));
    } else if (message?.type === "response") {
      this.#settle(message.callId, envelope.service)?.resolve(message.data);
    } else if (message?.type === "error") {
      const error = SnorkyError.from(message);
      // An error without a call ID is about a message that the server could not parse.
      if (message.callId === null || message.callId === undefined) {
        if (envelope.service === "gateway") this.#faults += 1;
        this.#events.onFault(error);
      } else this.#settle(message.callId, envelope.service)?.reject(error);
    } else if (!this.#isFinishing) {
      this.#events.onNotification(envelope.service, message);
    }
  }

  /**
   * Remove a call and return it; undefined if it timed out before, does not exist, or is to another service.
   *
   * @param {string} callId @param {string} [service] that replied
   */
  #settle(callId, service) {
    const call = this.#calls.get(callId);
    if (call === undefined || (service !== undefined && call.request.service !== service)) return undefined;
    this.#calls.delete(callId);
    call.cancelTimeout();
    if (this.#isFinishing && this.#calls.size === 0) this.close("moved");
    return call;
  }

  /**
   * Detect a server that disappeared without closing the connection. Browsers do not expose pings, so after a time
   * without messages the client calls `gateway.info`; any message shows that the server is alive, an error too. Timers
   * fire late after the computer slept, so the silence is measured, and a probe always precedes closing.
   *
   * @param {number} delayMs
   */
  #watch(delayMs) {
    const { clock, probeAfterMs, probeTimeoutMs } = this.#options;
    this.#cancelTimer = clock.after(delayMs, () => {
      const silentMs = clock.now() - this.#heardAtMs;
      if (silentMs < probeAfterMs) return this.#watch(Math.ceil(probeAfterMs - silentMs));
      const askedAtMs = clock.now();
      this.call("gateway", "info", {}, probeTimeoutMs).catch(() => {});
      this.#cancelTimer = clock.after(probeTimeoutMs, () => {
        if (this.#heardAtMs < askedAtMs) this.#abandon("no sign of life");
        else this.#watch(probeAfterMs);
      });
    });
  }

  /** End without waiting for a server that may be gone. @param {string} reason */
  #abandon(reason) {
    this.#end(ABNORMAL, reason);
    this.#socket.close();
  }

  /**
   * Reject all calls. After 1009 the largest one rejects with `too_large`: sent again, it would end the next connection.
   *
   * @param {number} code @param {string} reason
   */
  #end(code, reason) {
    if (this.#state === "ended") return;
    this.#state = "ended";
    this.#cancelTimer();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    const sizes = calls.map(({ request }) => request.sizeBytes);
    const poison = code === TOO_LARGE ? calls[sizes.indexOf(Math.max(...sizes))] : undefined;
    for (const call of calls) {
      call.cancelTimeout();
      call.reject(call === poison ? tooLarge(call.request) : disconnected());
    }
    this.#events.onEnd(code, reason, this.#refusal);
  }
}

/** @param {Request} request */
function tooLarge({ sizeBytes }) {
  return new SnorkyError(`The server does not take ${sizeBytes} bytes at once: send less`, "too_large");
}

function disconnected() {
  return new SnorkyError("The connection ended before the answer", "disconnected");
}

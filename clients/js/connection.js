/**
 * One WebSocket, from dialling to its end: calls and their answers, and nothing after the end.
 *
 * Invariants:
 * - `onEnd` is heard exactly once, and nothing is heard after it.
 * - Every call settles: answered, timed out, or rejected when the connection ends. None is sent twice.
 * - Only a reply of the service that was called settles a call. Call ids begin with 64 random bits that only the gateway
 *   learns, so that nothing that other clients send can look like a reply.
 */

import { SnorkyError } from "./error.js";
import { randomHex } from "./random.js";
import { refusalOf } from "./refusal.js";
import { Request } from "./request.js";

/**
 * What this client needs of a WebSocket; browsers, Node >= 22 and the package `ws` have it.
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
 * @property {string[]} subprotocols what the handshake asks for: the encoding's, and the token's
 * @property {SocketClass} WebSocket
 * @property {import("./json.js").Codec} codec
 * @property {number} messageMaxBytes
 * @property {import("./clock.js").Clock} clock
 * @property {number} connectTimeoutMs a socket that is not open by then is given up
 * @property {number} probeAfterMs silence before the server is asked whether it is there; 0: never
 * @property {number} probeTimeoutMs silence after that question before the connection counts as dead
 *
 * @typedef {object} ConnectionEvents
 * @property {() => void} onOpen
 * @property {(service: string, message: Notification) => void} onNotification whatever answers no call
 * @property {(error: SnorkyError) => void} onFault the server sent what cannot be understood; the connection goes on
 * @property {(code: number, reason: string, refusal: import("./refusal.js").Refusal | null) => void} onEnd refusal: why
 *   it has not opened, if the socket tells
 *
 * @typedef {Record<string, unknown> & {type?: unknown}} Notification
 *
 * @typedef {object} Call
 * @property {Request} request
 * @property {(data: any) => void} resolve
 * @property {(error: SnorkyError) => void} reject
 * @property {() => void} cancelTimeout
 */

// RFC 6455 7.1.5: what a closing that never got a close frame is called.
const ABNORMAL = 1006;
const NORMAL = 1000;
const TOO_LARGE = 1009; // 7.4.1: the client sent more at once than the server takes

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
  #faults = 0; // messages that the server could not read
  #heardAtMs;
  #isFinishing = false;
  #cancelTimer;

  /** Dial. @param {ConnectionOptions} options @param {ConnectionEvents} events */
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
      if (this.#state !== "connecting") return; // then a close event follows; the WebSocket of Node 20 has none here
      this.#refusal = refusalOf(event);
      this.#end(ABNORMAL, "");
    };
    this.#cancelTimer = options.clock.after(options.connectTimeoutMs, () => this.#abandon("connecting took too long"));
  }

  get isOpen() {
    return this.#state === "open";
  }

  /**
   * Make a request, send it and return its answer. Rejects as `send`, and with what Request throws.
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
   * Send a request and return its answer.
   *
   * Rejects with SnorkyError: what the server answered, `timeout`, `disconnected`, or `too_large`; `invalid_message`: it
   * has not been answered in time, and the server said that it could not read something.
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
        // Whatever the server could not read it will not read the next time: this must not be sent again.
        const code = this.#faults === faults ? "timeout" : "invalid_message";
        this.#settle(callId)?.reject(new SnorkyError(text, code));
      });
      this.#calls.set(callId, { request, resolve, reject, cancelTimeout });
      this.#socket.send(data);
    });
  }

  /** End now: calls in flight are rejected, nothing more is heard. @param {string} [reason] for the server's log */
  close(reason = "") {
    this.#end(NORMAL, reason);
    this.#socket.close(NORMAL, reason);
  }

  /** End as soon as the calls in flight are settled; notifications are heard no more. */
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
      // Without a call to reject it is about something the server could not even read.
      if (message.callId === null || message.callId === undefined) {
        if (envelope.service === "gateway") this.#faults += 1;
        this.#events.onFault(error);
      } else this.#settle(message.callId, envelope.service)?.reject(error);
    } else if (!this.#isFinishing) {
      this.#events.onNotification(envelope.service, message);
    }
  }

  /**
   * Take a call out; undefined if it timed out before, was never made, or is another service's.
   *
   * @param {string} callId @param {string} [service] whose reply it is
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
   * Notice a peer that vanished without a word: browsers show no pings, so after some silence we ask ourselves.
   * Any message is a sign of life, an error too. Timers fire late after sleep; silence is measured, and asking
   * comes before judging.
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

  /** End without waiting for a peer that may not be there. @param {string} reason */
  #abandon(reason) {
    this.#end(ABNORMAL, reason);
    this.#socket.close();
  }

  /**
   * After 1009 the largest call is rejected as too large: sent again, it would end the next connection.
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

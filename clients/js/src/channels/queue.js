/**
 * Publications without a reply yet: each is queued until the server replies, also across reconnects.
 *
 * Rules:
 * - A publication with an idempotency key is sent again under it while its outcome is unknown (the connection ended, or
 *   no reply in time), so it is published once. A publication without a key rejects instead.
 * - The server scopes keys by identity, or by connection if the client has none. A client without an identity does not
 *   send a publication of unknown outcome again on another connection.
 * - A publication that the server did not accept, but for which it names a `retryAfterMs`, is sent again, with or
 *   without a key.
 * - Publications are sent, and sent again, in the order of the calls. A new connection sends nothing while the old one
 *   still waits for replies. Only publications that the server postponed may follow later ones that were in flight.
 * - A message that the server would not accept is rejected at the call and does not enter the queue.
 * - The queue is bounded in number, bytes and age. Beyond that the call rejects, at once or when its time is over.
 *   No publication is dropped silently.
 */

import { channelName } from "../wire/canonical.js";
import { SnorkyError } from "../error.js";
import { Request } from "../wire/request.js";
import { plain } from "../wire/values.js";

/**
 * @typedef {import("../wire/connection.js").Connection} Connection
 *
 * @typedef {object} OwnOptions
 * @property {import("../clock.js").Clock} clock
 * @property {() => number} random
 * @property {number} callTimeoutMs for each attempt
 * @property {boolean} hasIdentity
 * @property {number} queueMax publications
 * @property {number} queueMaxBytes encoded size of the queued publications
 *
 * @typedef {import("../wire/request.js").RequestOptions & OwnOptions} QueueOptions
 *
 * @typedef {object} Publication
 * @property {string} service
 * @property {any} channel
 * @property {any} message
 * @property {string | null} key idempotency key
 * @property {number} maxAgeMs maximum time for all attempts and waits together
 *
 * @typedef {object} Entry
 * @property {Request} request
 * @property {string | null} key
 * @property {Connection | null} sentOn the connection that waits for its reply
 * @property {SnorkyError | null} failure of the last attempt
 * @property {Connection | null} unknownOn the connection of the last attempt with an unknown outcome
 * @property {number} deadlineMs
 * @property {() => void} cancelDeadline
 * @property {(data: any) => void} resolve
 * @property {(error: SnorkyError) => void} reject
 */

// Publications in flight at once: well below the server's limit on bursts (1,000), which calls count in too.
const WINDOW = 256;
const RETRY_MS = 1_000; // if the server gives no retryAfterMs
const KEY_MAX_BYTES = 255; // PROTOCOL
const utf8 = new TextEncoder();
/** Whether the outcome is unknown; with a key it is safe to send again. */
const isUnknown = (/** @type {SnorkyError} */ { code }) => ["disconnected", "timeout", "unavailable"].includes(code);

export class Queue {
  #options;
  #offline;
  /** In the order of the calls. @type {Set<Entry>} */
  #entries = new Set();
  #bytes = 0;
  /** @type {Connection | null} */
  #connection = null;
  #resumeAtMs = -Infinity;
  #cancelResumption = () => {};

  /**
   * offline: creates the error of a publication that was never sent.
   *
   * @param {QueueOptions} options @param {() => SnorkyError} offline
   */
  constructor(options, offline) {
    this.#options = options;
    this.#offline = offline;
  }

  /** The number of publications without a reply. */
  get size() {
    return this.#entries.size;
  }

  /**
   * Publish; resolves with the data of the server's reply.
   *
   * Rejects with SnorkyError:
   * - the server's error, if it refused the publication;
   * - `queue_full`: never sent;
   * - `disconnected`, `timeout`, `unavailable`: the outcome is unknown; with a key only after `maxAgeMs`;
   * - `offline`: never sent within `maxAgeMs`;
   * - `too_large`: the server closed the connection because of its size.
   * Throws the errors of Request, and TypeError: the channel or the key is not valid.
   *
   * @param {Publication} publication @returns {Promise<any>}
   */
  add({ service, channel, message, key, maxAgeMs }) {
    const { clock, queueMax, queueMaxBytes } = this.#options;
    channelName(plain(channel));
    if (key !== null && !isKey(key)) throw new TypeError(`key: a string of 1 to ${KEY_MAX_BYTES} bytes is expected`);
    const params = key === null ? { channel, message } : { channel, message, key };
    if (message === undefined) throw new TypeError("undefined is no message");
    const request = new Request(service, "publish", params, this.#options);
    if (this.#entries.size >= queueMax || this.#bytes + request.sizeBytes > queueMaxBytes) {
      return Promise.reject(new SnorkyError("Too many publications wait", "queue_full"));
    }
    return new Promise((resolve, reject) => {
      /** @type {Entry} */
      const entry = {
        request, key, resolve, reject,
        sentOn: null,
        unknownOn: null,
        failure: null,
        deadlineMs: clock.now() + maxAgeMs,
        cancelDeadline: clock.after(maxAgeMs, () => this.#expire(entry)),
      };
      this.#entries.add(entry);
      this.#bytes += request.sizeBytes;
      this.#pump();
    });
  }

  /** Use this connection from now on; null: there is none. @param {Connection | null} connection */
  use(connection) {
    this.#connection = connection;
    this.#pump();
  }

  /** Stop using a connection that has ended. @param {Connection} connection */
  ended(connection) {
    if (connection === this.#connection) this.#connection = null;
  }

  /** Reject all publications: the client is closed. @param {SnorkyError} error for those never sent */
  close(error) {
    this.#connection = null;
    this.#cancelResumption();
    for (const entry of [...this.#entries]) {
      const unknown = entry.sentOn === null ? entry.failure : new SnorkyError("The client was closed before the reply", "disconnected");
      this.#settle(entry)?.reject(unknown ?? error);
    }
  }

  /** Send the publications that may be sent now. */
  #pump() {
    const connection = this.#connection;
    if (connection === null || !connection.isOpen) return;
    const waitMs = this.#resumeAtMs - this.#options.clock.now();
    if (waitMs > 0) return;
    let inFlight = 0;
    for (const entry of this.#entries) {
      if (inFlight >= WINDOW) return;
      if (this.#isKeyLost(entry, connection)) {
        this.#settle(entry)?.reject(/** @type {SnorkyError} */ (entry.failure));
        continue;
      }
      if (entry.sentOn === null) this.#send(entry, connection);
      else if (entry.sentOn !== connection) return; // the previous connection still waits for its reply
      inFlight += 1;
    }
  }

  /**
   * Whether the server may publish it again on this connection, because it scopes the key to another one.
   *
   * @param {Entry} entry @param {Connection} connection
   */
  #isKeyLost({ unknownOn }, connection) {
    return !this.#options.hasIdentity && unknownOn !== null && unknownOn !== connection;
  }

  /** @param {Entry} entry @param {Connection} connection */
  #send(entry, connection) {
    const { clock, callTimeoutMs } = this.#options;
    const timeoutMs = Math.min(callTimeoutMs, entry.deadlineMs - clock.now());
    entry.sentOn = connection;
    connection.send(entry.request, timeoutMs).then(
      (data) => {
        this.#settle(entry)?.resolve(data);
        this.#pump();
      },
      (error) => this.#failed(entry, connection, error),
    );
  }

  /** @param {Entry} entry @param {Connection} connection @param {SnorkyError} error */
  #failed(entry, connection, error) {
    if (!this.#entries.has(entry)) return; // it expired or the client was closed meanwhile
    entry.sentOn = null;
    if (!this.#mayBeSentAgain(entry, error)) {
      this.#settle(entry)?.reject(error);
    } else {
      if (isUnknown(error)) entry.unknownOn = connection;
      if (isUnknown(error) || entry.failure === null) entry.failure = error;
      if (error.code !== "disconnected") this.#pause(error.retryAfterMs ?? RETRY_MS);
    }
    this.#pump();
  }

  /** @param {Entry} entry @param {SnorkyError} error */
  #mayBeSentAgain({ key }, error) {
    if (!isUnknown(error)) return error.retryAfterMs !== null;
    return key !== null && (error.code !== "disconnected" || this.#options.hasIdentity);
  }

  /** Send nothing for `delayMs`, and up to half of it more. @param {number} delayMs */
  #pause(delayMs) {
    const { clock, random } = this.#options;
    const resumeAtMs = clock.now() + delayMs * (1 + random() / 2);
    if (resumeAtMs <= this.#resumeAtMs) return;
    this.#resumeAtMs = resumeAtMs;
    this.#cancelResumption();
    this.#cancelResumption = clock.after(resumeAtMs - clock.now(), () => this.#pump());
  }

  /** @param {Entry} entry */
  #expire(entry) {
    const isSent = entry.sentOn !== null;
    const failure = isSent ? new SnorkyError("No answer to the publication in time", "timeout") : entry.failure;
    this.#settle(entry)?.reject(failure ?? this.#offline());
    this.#pump();
  }

  /** Remove an entry and return it; undefined if it is gone already. @param {Entry} entry */
  #settle(entry) {
    if (!this.#entries.delete(entry)) return undefined;
    this.#bytes -= entry.request.sizeBytes;
    entry.cancelDeadline();
    return entry;
  }
}

/** @param {unknown} key */
function isKey(key) {
  return typeof key === "string" && key !== "" && utf8.encode(key).length <= KEY_MAX_BYTES;
}

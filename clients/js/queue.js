/**
 * Publications on their way: each is kept until the server has answered, whatever becomes of connections meanwhile.
 *
 * Rules:
 * - What has an idempotency key is sent again under it when its outcome is not known (the connection ended, no answer in
 *   time). So it is published once. What has none rejects then.
 * - The server knows a key by the client's identity, and of who has none by its connection: there it is not sent again
 *   on another one.
 * - What the server did not take, and says that trying again helps (`retryAfterMs`), is sent again with or without a key.
 * - They go out in the order of the calls, and again in that order; a new connection gets nothing while the old one owes
 *   answers. Only what the server itself put off may come behind others that were on their way by then.
 * - A message that the server would refuse is refused at the call, and takes no place.
 * - What is kept is bounded in number, bytes and age. Beyond that the call rejects: at once, or when its time is over.
 *   Nothing is dropped without a word.
 */

import { channelName } from "./canonical.js";
import { SnorkyError } from "./error.js";
import { Request } from "./request.js";
import { plain } from "./values.js";

/**
 * @typedef {import("./connection.js").Connection} Connection
 *
 * @typedef {object} OwnOptions
 * @property {import("./clock.js").Clock} clock
 * @property {() => number} random
 * @property {number} callTimeoutMs for each attempt
 * @property {boolean} hasIdentity
 * @property {number} queueMax publications
 * @property {number} queueMaxBytes of them as they are sent
 *
 * @typedef {import("./request.js").RequestOptions & OwnOptions} QueueOptions
 *
 * @typedef {object} Publication
 * @property {string} service
 * @property {any} channel
 * @property {any} message
 * @property {string | null} key idempotency key
 * @property {number} maxAgeMs how long it may take, all attempts and waits together
 *
 * @typedef {object} Entry
 * @property {Request} request
 * @property {string | null} key
 * @property {Connection | null} sentOn where its answer is awaited
 * @property {SnorkyError | null} failure of the last attempt
 * @property {Connection | null} unknownOn where it was sent, and the outcome is not known
 * @property {number} deadlineMs
 * @property {() => void} cancelDeadline
 * @property {(data: any) => void} resolve
 * @property {(error: SnorkyError) => void} reject
 */

// How many await answers at once: a server's limit on bursts (1,000) leaves room for everything else.
const WINDOW = 256;
const RETRY_MS = 1_000; // where the server names no time
const KEY_MAX_BYTES = 255; // PROTOCOL
const utf8 = new TextEncoder();
/** Outcomes that are not known; the key makes it safe to ask again. */
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

  /** offline: makes the error of what was never sent. @param {QueueOptions} options @param {() => SnorkyError} offline */
  constructor(options, offline) {
    this.#options = options;
    this.#offline = offline;
  }

  /** Publications that are not answered. */
  get size() {
    return this.#entries.size;
  }

  /**
   * Publish; resolves with the server's answer.
   *
   * Rejects with SnorkyError: what the server refused it with; `queue_full`: never sent; `disconnected`,
   * `timeout`, `unavailable` without a key: the outcome is unknown; when `maxAgeMs` is over `offline`: never sent, or `disconnected`,
   * `timeout`, `unavailable`: the outcome is unknown; `too_large`: the server ended a
   * connection because of it. Throws what Request throws, and TypeError: no channel, or no key.
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

  /** Send over this connection from now on; null: there is none. @param {Connection | null} connection */
  use(connection) {
    this.#connection = connection;
    this.#pump();
  }

  /** Know that a connection has ended. @param {Connection} connection */
  ended(connection) {
    if (connection === this.#connection) this.#connection = null;
  }

  /** Reject all that is left; there will be no connection. @param {SnorkyError} error for what was never sent */
  close(error) {
    this.#connection = null;
    this.#cancelResumption();
    for (const entry of [...this.#entries]) {
      const unknown = entry.sentOn === null ? entry.failure : new SnorkyError("Ended before the answer", "disconnected");
      this.#settle(entry)?.reject(unknown ?? error);
    }
  }

  /** Send what may be sent. */
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
      else if (entry.sentOn !== connection) return; // the connection before this one owes an answer
      inFlight += 1;
    }
  }

  /** True if this connection's server would take it for another one. @param {Entry} entry @param {Connection} connection */
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
    if (!this.#entries.has(entry)) return; // it was given up meanwhile
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

  /** Send nothing for some time. @param {number} delayMs */
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

  /** Take an entry out; undefined if it is out already. @param {Entry} entry */
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

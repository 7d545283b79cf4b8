/**
 * The link to the server: one session at a time, replaced when it ends or its server announces that it leaves.
 *
 * `current` is the session that sends calls and delivers messages; `next` is the one that is connecting. A session that
 * opens subscribes to all topics. Without a current session it becomes current at once, else when the mover allows it.
 *
 * If the first handshake is refused for a permanent reason (a wrong URL, say), the client ends. After a successful
 * handshake the URL is known to be right, so a later refusal may be temporary and the client keeps trying.
 */

import { Backoff } from "./backoff.js";
import { SnorkyError } from "../error.js";
import { Mover } from "./mover.js";
import { probe } from "../wire/refusal.js";
import { Session } from "./session.js";
import { Token } from "./token.js";

/**
 * @typedef {import("../channels/topic.js").Topic} Topic
 * @typedef {import("../wire/connection.js").Notification} Notification
 * @typedef {import("../options.js").Settings} Settings
 * @typedef {import("../wire/refusal.js").Refusal} Refusal
 *
 * @typedef {object} LinkEvents
 * @property {() => Iterable<Topic>} topics those that every session subscribes to
 * @property {(service: string, channel: unknown) => Topic | undefined} find
 * @property {(service: string, message: Notification) => void} onNotice
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused
 * @property {(topic: Topic, error: SnorkyError) => void} onUnsubscribed
 * @property {(service: string, channel: unknown) => Topic | undefined} onSubscribed
 * @property {(topic: Topic) => void} onBegun
 * @property {(topic: Topic, error: SnorkyError) => void} onNoToken
 * @property {(error: SnorkyError) => void} onError
 * @property {(session: Session, how: {isMove: boolean, isResync: boolean}) => void} onOpen a session has become current
 * @property {(code: number, reason: string) => void} onLost the current session has ended; the client reconnects
 * @property {(delayMs: number, attempt: number, refusal: Refusal | null) => void} onWaiting refusal: why the last handshake
 *   was refused, if it was and the reason is known
 * @property {(graceMs: number) => void} onMoving
 * @property {(session: Session) => void} onSessionEnd any session, before its calls are rejected
 * @property {(code: number, reason: string, status: number | null) => void} onEnd the client does not reconnect. status:
 *   the HTTP status of a refused handshake
 */

// A shorter connection does not reset the backoff: a node may accept connections and close them at once.
const STABLE_MS = 5_000;
const PROBE_TIMEOUT_MS = 5_000;
// Close codes (RFC 6455 7.1.5, PROTOCOL).
const ABNORMAL = 1006;
const UNAUTHORIZED = 401; // HTTP; from a proxy that checks tokens, never from a gateway
const RESYNC = 4010;
const BAD_TOKEN = 4501;
const isTerminal = (/** @type {number} */ code) => code >= 4500 && code <= 4999;

export class Link {
  #settings;
  #events;
  #clock;
  #backoff;
  #mover;
  #token;
  /** @type {Session | null} */
  #current = null;
  /** @type {Session | null} */
  #next = null;
  #isRenewing = false; // asking the application for the next handshake's token
  #isResync = false;
  #cancelDialling = () => {};
  #hasBeenOpen = false;
  #failures = 0; // failed handshakes since the last success
  /** @type {Refusal | null} */
  #refusal = null;
  #cancelProbe = () => {};
  #isClosed = false;

  /** Start connecting. Throws TypeError: the token is not valid. @param {Settings} settings @param {LinkEvents} events */
  constructor(settings, events) {
    this.#settings = settings;
    this.#events = events;
    this.#clock = settings.clock;
    this.#backoff = new Backoff({
      baseMs: settings.backoffBaseMs,
      maxMs: settings.backoffMaxMs,
      random: settings.random,
    });
    this.#mover = new Mover(settings.random);
    this.#token = new Token({ ...settings, onError: events.onError });
    this.#dial();
  }

  /** The session that sends calls and delivers messages; null if there is none. */
  get current() {
    return this.#current;
  }

  /** The session that is connecting, or preparing to replace the current one; null if there is none. */
  get next() {
    return this.#next;
  }

  /** Why the last handshake was refused; null if it was not, or the reason is unknown. */
  get refusal() {
    return this.#refusal;
  }

  /** True while the client is connecting or gets a token to connect with. */
  get isDialling() {
    return this.#next !== null || this.#isRenewing;
  }

  /** Close all connections and do not reconnect. Idempotent. */
  close() {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#cancelDialling();
    this.#cancelProbe();
    this.#token.stop();
    const sessions = [this.#current, this.#next];
    this.#current = null;
    this.#next = null;
    for (const session of sessions) session?.connection.close();
    this.#mover.close();
  }

  // -- dialling ------------------------------------------------------------------------------------------------

  #dial() {
    this.#cancelDialling();
    if (this.#isClosed || this.isDialling) return;
    if (this.#token.isMissing) return void this.#renewAndDial();
    const events = this.#events;
    const subprotocols = [this.#settings.codec.subprotocol, ...this.#token.subprotocols];
    /** @type {Session} */
    const session = new Session(
      { ...this.#settings, subprotocols },
      {
        onOpen: () => this.#onOpen(session),
        onNotice: (service, message) => this.#onNotice(session, service, message),
        onLoose: (topic, message) => this.#onLoose(session, topic, message),
        find: events.find,
        onRefused: events.onRefused,
        onUnsubscribed: events.onUnsubscribed,
        onSubscribed: events.onSubscribed,
        onBegun: events.onBegun,
        onNoToken: events.onNoToken,
        onFault: events.onError,
        onEnd: (code, reason, refusal) => this.#onEnd(session, code, reason, refusal),
      },
    );
    this.#next = session;
  }

  async #renewAndDial() {
    this.#isRenewing = true;
    try {
      await this.#token.renew();
    } catch (error) {
      this.#isRenewing = false;
      if (this.#isClosed) return;
      this.#events.onError(/** @type {SnorkyError} */ (error));
      if (!this.#isClosed) this.#retry();
      return;
    }
    this.#isRenewing = false;
    this.#dial();
  }

  /** @param {number} delayMs */
  #dialAfter(delayMs) {
    this.#cancelDialling();
    this.#cancelDialling = this.#clock.after(delayMs, () => this.#dial());
  }

  #retry() {
    const delayMs = this.#backoff.next();
    this.#dialAfter(delayMs);
    if (this.#current === null) this.#events.onWaiting(delayMs, this.#backoff.failures, this.#refusal);
  }

  // -- sessions ------------------------------------------------------------------------------------------------

  /** @param {Session} session */
  #onOpen(session) {
    session.openedAtMs = this.#clock.now();
    this.#hasBeenOpen = true;
    this.#failures = 0;
    this.#refusal = null;
    const old = this.#current;
    if (old !== null) session.hold();
    for (const topic of this.#events.topics()) session.subscribe(topic);
    if (old === null) return this.#promote(session);
    void this.#mover.prepared(session, old).then(() => {
      // Either session may have ended meanwhile; #onEnd has then chosen the current one.
      if (this.#next === session) this.#promote(session);
    });
  }

  /** Make the next session the current one. @param {Session} session */
  #promote(session) {
    const old = this.#current;
    const how = { isMove: session.isHolding, isResync: this.#isResync };
    this.#current = session;
    this.#next = null;
    this.#isResync = false;
    if (old !== null) this.#mover.dismiss(old);
    session.release();
    if (this.#current !== session) return; // a handler may have closed the client
    this.#token.attend(session.connection);
    this.#events.onOpen(session, how);
    if (session.movingGraceMs !== null) this.#move(session, session.movingGraceMs);
  }

  /** @param {Session} session @param {number} code @param {string} reason @param {Refusal | null} refusal */
  #onEnd(session, code, reason, refusal) {
    this.#mover.forget(session);
    this.#events.onSessionEnd(session);
    if (this.#isClosed || (session !== this.#current && session !== this.#next)) return;
    const isRenewed = code === BAD_TOKEN && this.#token.refused();
    if (isTerminal(code) && !isRenewed) return this.#finish(code, reason);
    if (session.openedAtMs === Infinity && this.#isOver(refusal)) return;
    if (code === RESYNC) this.#isResync = true;
    if (this.#clock.now() - session.openedAtMs >= STABLE_MS) this.#backoff.reset();
    if (session === this.#next) {
      this.#next = null;
    } else {
      this.#current = null;
      this.#token.stop();
      if (this.#next?.connection.isOpen) return this.#promote(this.#next);
      this.#events.onLost(code, reason);
      if (this.#isClosed || this.isDialling) return; // an application may close in its handler
    }
    this.#retry();
  }

  /** @param {number} code @param {string} reason @param {number | null} [status] */
  #finish(code, reason, status = null) {
    this.close();
    this.#events.onEnd(code, reason, status);
  }

  /**
   * Record why a handshake failed. End the client and return true if the reason is permanent. If the socket does not
   * report the reason, probe the URL, but only after failure 1, 2, 4, 8 and so on: many reconnecting clients must not
   * double their requests.
   *
   * @param {Refusal | null} refusal
   */
  #isOver(refusal) {
    this.#failures += 1;
    if (refusal !== null) this.#refusal = refusal;
    else if ((this.#failures & (this.#failures - 1)) === 0) void this.#probe();
    if (refusal === null || !refusal.isFinal || this.#hasBeenOpen) return false;
    if (refusal.status === UNAUTHORIZED && this.#token.refused()) return false;
    this.#refuse(refusal);
    return true;
  }

  /** @param {Refusal} refusal */
  #refuse({ text, status }) {
    this.#finish(ABNORMAL, text, status);
    this.#events.onError(new SnorkyError(text, "closed", null, status)); // the event `close` alone might go unnoticed
  }

  async #probe() {
    const { url, fetch } = this.#settings;
    const failures = this.#failures;
    if (fetch === undefined) return;
    this.#cancelProbe();
    const aborter = new AbortController();
    const cancelTimeout = this.#clock.after(PROBE_TIMEOUT_MS, () => aborter.abort());
    this.#cancelProbe = () => {
      cancelTimeout();
      aborter.abort();
    };
    const refusal = await probe(url, fetch, aborter.signal);
    cancelTimeout();
    // Meanwhile a connection may have opened, or the application may have closed the client.
    if (refusal === null || this.#isClosed || this.#failures < failures) return;
    this.#refusal = refusal;
    if (refusal.isFinal && !this.#hasBeenOpen) this.#refuse(refusal);
  }

  /** @param {Session} session @param {number} graceMs */
  #move(session, graceMs) {
    session.movingGraceMs = graceMs;
    if (session === this.#current && !this.isDialling) this.#dialAfter(this.#mover.delayMs(graceMs));
  }

  // -- notifications -------------------------------------------------------------------------------------------

  /** @param {Session} session @param {string} service @param {Notification} message */
  #onNotice(session, service, message) {
    if (this.#isClosed) return; // by a handler, while buffered messages are released
    this.#events.onNotice(service, message);
    if (service !== "gateway" || message?.type !== "moving" || session.movingGraceMs !== null) return;
    const graceMs = typeof message.graceMs === "number" ? message.graceMs : 0;
    this.#events.onMoving(graceMs);
    this.#move(session, graceMs);
  }

  /** @param {Session} session @param {Topic} topic @param {Notification} message */
  #onLoose(session, topic, message) {
    if (this.#isClosed || session.isRepetition(topic, message.message)) return;
    if (session === this.#current) this.#next?.note(topic, message.message);
    topic.deliver(message);
  }
}

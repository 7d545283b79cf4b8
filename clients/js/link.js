/**
 * The way to the server, kept open: one session at a time, the next one when that ends or is about to.
 *
 * `current` is the session that calls go to and that delivers; `next` is the one being dialled. A session that opens
 * gets all topics. Without a current one it takes over at once; with one it does as the mover says.
 *
 * A handshake that was refused for a reason that cannot heal (a wrong URL, say) is the end if none has succeeded before:
 * the URL of a client that has been connected is right, and what refuses it now may pass.
 */

import { Backoff } from "./backoff.js";
import { SnorkyError } from "./error.js";
import { Mover } from "./mover.js";
import { probe } from "./refusal.js";
import { Session } from "./session.js";
import { Token } from "./token.js";

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./connection.js").Notification} Notification
 * @typedef {import("./options.js").Settings} Settings
 * @typedef {import("./refusal.js").Refusal} Refusal
 *
 * @typedef {object} LinkEvents
 * @property {() => Iterable<Topic>} topics what every session has to carry
 * @property {(service: string, channel: unknown) => Topic | undefined} find
 * @property {(service: string, message: Notification) => void} onNotice
 * @property {(topic: Topic, error: SnorkyError) => void} onRefused
 * @property {(error: SnorkyError) => void} onError
 * @property {(session: Session, how: {isMove: boolean, isResync: boolean}) => void} onOpen a session is current
 * @property {(code: number, reason: string) => void} onLost the current session has ended; another will come
 * @property {(delayMs: number, attempt: number, refusal: Refusal | null) => void} onWaiting refusal: of the last handshake,
 *   if it was refused and it is known why
 * @property {(graceMs: number) => void} onMoving
 * @property {(session: Session) => void} onSessionEnd any session, before its calls are rejected
 * @property {(code: number, reason: string, status: number | null) => void} onEnd there will be no other. status: of the
 *   handshake that was refused
 */

// A connection that lives shorter proves nothing: a node that accepts and closes is backed off from as well.
const STABLE_MS = 5_000;
const PROBE_TIMEOUT_MS = 5_000;
// Close codes (RFC 6455 7.1.5, PROTOCOL).
const ABNORMAL = 1006;
const UNAUTHORIZED = 401; // of HTTP; never a gateway's answer, but that of a proxy that looks at tokens
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
  #isRenewing = false; // the token that the next handshake brings
  #isResync = false;
  #cancelDialling = () => {};
  #hasBeenOpen = false;
  #failures = 0; // handshakes, since one succeeded
  /** @type {Refusal | null} */
  #refusal = null;
  #cancelProbe = () => {};
  #isClosed = false;

  /** Dial. Throws TypeError if the token cannot be one. @param {Settings} settings @param {LinkEvents} events */
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

  get current() {
    return this.#current;
  }

  get next() {
    return this.#next;
  }

  /** Why the last handshake was refused, if it was and it is known. */
  get refusal() {
    return this.#refusal;
  }

  /** True while a connection is on its way. */
  get isDialling() {
    return this.#next !== null || this.#isRenewing;
  }

  /** End all connections, and dial no more. Idempotent. */
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
      // Either session may have ended meanwhile; then somebody else has decided.
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
   * Know why a handshake failed, and end if that cannot heal. Where the socket does not tell, the URL is asked: after the
   * first failure, the second, the fourth and so on, for a crowd that comes back must not ask twice as much.
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
    this.#events.onError(new SnorkyError(text, "closed", null, status)); // somebody has to hear it
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
    // Meanwhile it may have been opened, or closed by the application.
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
    if (this.#isClosed) return; // by a handler, while held messages are released
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

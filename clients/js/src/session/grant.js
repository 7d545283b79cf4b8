/**
 * The subscription token of one channel on one connection: asked for with each `subscribe`, renewed before it expires.
 *
 * - A function is called for each request, because its last token may have expired. A text is sent each time, and is
 *   not renewed.
 * - A failed renewal is repeated with backoff, at most once a second. Until the server ends the subscription, the
 *   present token counts.
 * - After `end` nothing is sent or reported, and no timer is left.
 */

import { SnorkyError } from "../error.js";
import { DELAY_MAX_MS, checked, noToken } from "./token.js";

/**
 * @typedef {import("../channels/topic.js").Topic} Topic
 *
 * @typedef {string | ((channel: any) => string | null | Promise<string | null>)} SubscriptionTokenSource null: the
 *   client may not subscribe
 *
 * @typedef {object} GrantOptions
 * @property {import("../clock.js").Clock} clock
 * @property {() => number} random
 * @property {number} callTimeoutMs
 * @property {number} backoffMaxMs
 *
 * @typedef {object} GrantEvents
 * @property {(token: string) => Promise<unknown>} refresh send a token in place of the present one; resolves with the reply
 * @property {(error: SnorkyError) => void} onError there is no new token yet; another attempt follows
 * @property {() => void} onLost the server has no such subscription
 */

const RETRY_MIN_MS = 1_000;

export class Grant {
  #topic;
  #options;
  #events;
  #isOver = false;
  #failures = 0; // since the server last accepted a token
  #startedAtMs = -Infinity;
  #expiresAtMs = Infinity;
  #cancelTimer = () => {};
  #abandon = () => {};

  /** @param {Topic} topic @param {GrantOptions} options @param {GrantEvents} events */
  constructor(topic, options, events) {
    this.#topic = topic;
    this.#options = options;
    this.#events = events;
  }

  /** The time until the channel may be requested again after it has expired: at most once a second. */
  get restMs() {
    return Math.max(0, this.#startedAtMs + RETRY_MIN_MS - this.#options.clock.now());
  }

  /**
   * Ask the application for the token of a `subscribe`; null: it refuses.
   *
   * Rejects with SnorkyError (`token`), which has been reported: try again after its retryAfterMs.
   *
   * @param {Exclude<SubscriptionTokenSource, string>} source
   */
  async ask(source) {
    try {
      return await this.#tokenOf(source);
    } catch (error) {
      const { message, code } = /** @type {SnorkyError} */ (error);
      const failure = new SnorkyError(message, code, this.#backoffMs());
      if (!this.#isOver) this.#events.onError(failure);
      throw failure;
    }
  }

  /**
   * The server has refused a token because it has expired. Returns the error with the time after which to try another
   * one. A token may expire on its way; if several do, the clock of its issuer is wrong, so that is reported.
   *
   * @param {SnorkyError} refusal
   */
  expired(refusal) {
    const error = new SnorkyError(refusal.message, refusal.code, this.#backoffMs());
    if (this.#failures > 1) this.#events.onError(error);
    return error;
  }

  /** The server has accepted a token: renew it after 70 to 80 % of its time. @param {any} reply */
  started(reply) {
    const { clock, random } = this.#options;
    const expiresInS = reply?.expiresInS;
    this.#startedAtMs = clock.now();
    this.#failures = 0;
    if (typeof this.#topic.token !== "function" || typeof expiresInS !== "number" || !(expiresInS >= 0)) return;
    this.#expiresAtMs = clock.now() + expiresInS * 1_000;
    this.#renewAfter(expiresInS * 1_000 * (0.7 + 0.1 * random()));
  }

  /** Send and report nothing more. Idempotent. */
  end() {
    this.#isOver = true;
    this.#cancelTimer();
    this.#abandon();
  }

  // -- renewal -------------------------------------------------------------------------------------------------

  async #renew() {
    const source = this.#topic.token;
    if (typeof source !== "function") return; // the handler that had it has left
    let error;
    try {
      const token = await this.#tokenOf(source);
      if (token === null || this.#isOver) return;
      const reply = await this.#events.refresh(token);
      if (!this.#isOver) this.started(reply);
      return;
    } catch (thrown) {
      error = /** @type {SnorkyError} */ (thrown);
    }
    if (this.#isOver) return;
    if (error.code === "not_subscribed") return this.#events.onLost();
    const delayMs = Math.min(this.#backoffMs() * (1 + this.#options.random()), this.#leftMs * 0.75);
    const isPassing = error.retryAfterMs !== null || error.code === "timeout";
    if (!isPassing && (error.code !== "token_expired" || this.#failures > 1)) this.#events.onError(error);
    if (!this.#isOver) this.#renewAfter(Math.max(error.retryAfterMs ?? 0, delayMs)); // a handler may have closed the subscription
  }

  /** @param {number} delayMs */
  #renewAfter(delayMs) {
    this.#cancelTimer();
    const boundedMs = Math.min(DELAY_MAX_MS, Math.max(RETRY_MIN_MS, delayMs));
    this.#cancelTimer = this.#options.clock.after(boundedMs, () => void this.#renew());
  }

  get #leftMs() {
    return Math.max(0, this.#expiresAtMs - this.#options.clock.now());
  }

  /** Count a failure; returns the delay before the next attempt, to be prolonged at random by up to 100 %. */
  #backoffMs() {
    const delayMs = Math.min(this.#options.backoffMaxMs / 2, RETRY_MIN_MS * 2 ** this.#failures);
    this.#failures += 1;
    return Math.max(RETRY_MIN_MS, delayMs);
  }

  // -- the application's function ------------------------------------------------------------------------------

  /**
   * Call the function; after `end` null. Rejects with SnorkyError (`token`): it failed, was too slow, or gave no token.
   *
   * @param {Exclude<SubscriptionTokenSource, string>} source @returns {Promise<string | null>}
   */
  async #tokenOf(source) {
    const { clock, callTimeoutMs } = this.#options;
    const answer = new Promise((resolve, reject) => {
      let settle = (/** @type {() => void} */ action) => {
        settle = () => {}; // later answers are ignored
        cancelTimeout();
        this.#abandon = () => {};
        action();
      };
      const cancelTimeout = clock.after(callTimeoutMs, () => settle(() => reject(new Error("no answer in time"))));
      this.#abandon = () => settle(() => resolve(null));
      const { channel } = this.#topic;
      // Not at once: the function may use the client, which is in the middle of a change.
      void Promise.resolve().then(() => (this.#isOver ? null : source(channel)))
        .then((value) => settle(() => resolve(value)), (error) => settle(() => reject(error)));
    });
    try {
      const token = await answer;
      return token === null ? null : checked(token);
    } catch (error) {
      throw noToken(error);
    }
  }
}

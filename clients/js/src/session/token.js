/**
 * The token that authenticates this client: sent in handshakes, renewed before it expires or after it was refused.
 *
 * A function as token is called when there is no token, before the present one expires, and once after the server
 * refused it (4501); if the new one is refused too, the client ends. A handshake does not report when the token
 * expires, so on each connection the client asks the service `auth`.
 */

import { SnorkyError } from "../error.js";

/**
 * @typedef {import("../wire/connection.js").Connection} Connection
 *
 * @typedef {string | (() => string | Promise<string>)} TokenSource
 *
 * @typedef {object} TokenOptions
 * @property {TokenSource | undefined} token
 * @property {import("../clock.js").Clock} clock
 * @property {() => number} random
 * @property {number} callTimeoutMs
 * @property {(error: SnorkyError) => void} onError the token was not renewed; the client tries again
 */

// RFC 9110 5.6.2: the characters of a subprotocol. A JWT has no others.
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;
const RETRY_MIN_MS = 1_000;
const RETRY_MS = 30_000; // while the token's expiry is unknown
// The maximum of setTimeout; a token that is valid longer is renewed then.
export const DELAY_MAX_MS = 2 ** 31 - 1;

export class Token {
  #options;
  /** @type {string | null} */
  #value = null;
  #expiresAtMs = Infinity;
  /** True from the replacement of a refused token until the server accepts the new one. */
  #isLastTry = false;
  /** The connection whose token is renewed in time. @type {Connection | null} */
  #attended = null;
  #cancelTimer = () => {};

  /** Throws TypeError: the token is not valid. @param {TokenOptions} options */
  constructor(options) {
    this.#options = options;
    if (typeof options.token !== "function" && options.token !== undefined) this.#value = checked(options.token);
  }

  /** Whether the application can provide a new token. */
  get isRenewable() {
    return typeof this.#options.token === "function";
  }

  /** Whether `renew` must be called before the next handshake. */
  get isMissing() {
    return this.isRenewable && (this.#value === null || this.#options.clock.now() >= this.#expiresAtMs);
  }

  /** The subprotocol that carries the token in the handshake. */
  get subprotocols() {
    return this.#value === null ? [] : [`bearer.${this.#value}`];
  }

  /** Get a token from the application. Rejects with SnorkyError (`token`): it failed, or the token is not valid. */
  async renew() {
    const { token } = this.#options;
    if (typeof token !== "function") return;
    try {
      this.#value = checked(await token());
      this.#expiresAtMs = Infinity;
    } catch (error) {
      throw noToken(error);
    }
  }

  /** Discard a token that the server refused. Returns whether to try a new one. */
  refused() {
    if (!this.isRenewable || this.#isLastTry) return false;
    this.#isLastTry = true;
    this.#value = null;
    return true;
  }

  /** Renew the token on this connection, and no longer on the previous one. @param {Connection} connection */
  attend(connection) {
    this.stop();
    if (this.#value === null || !this.isRenewable) return;
    this.#attended = connection;
    void this.#present("authenticate");
  }

  /** Stop renewing. */
  stop() {
    this.#attended = null;
    this.#cancelTimer();
  }

  /** @param {"authenticate" | "refresh"} command */
  async #present(command) {
    const { clock, callTimeoutMs, onError } = this.#options;
    const connection = this.#attended;
    if (connection === null) return;
    try {
      const answer = await connection.call("auth", command, { token: this.#value }, callTimeoutMs);
      if (connection !== this.#attended) return;
      const expiresInS = answer?.expiresInS;
      this.#isLastTry = false;
      this.#expiresAtMs = typeof expiresInS === "number" ? clock.now() + expiresInS * 1_000 : Infinity;
      if (this.#expiresAtMs < Infinity) this.#renewLater();
    } catch (error) {
      if (connection !== this.#attended || !connection.isOpen) return; // the next connection presents it
      onError(/** @type {SnorkyError} */ (error));
      if (this.#expiresAtMs < Infinity) this.#renewLater();
      else this.#after(RETRY_MS, () => this.#present(command));
    }
  }

  /** Renew after 70 to 90 % of the time that is left, at random, so that clients do not renew all at once. */
  #renewLater() {
    const { clock, random } = this.#options;
    const leftMs = Math.max(0, this.#expiresAtMs - clock.now());
    this.#after(Math.max(RETRY_MIN_MS, leftMs * (0.7 + 0.2 * random())), () => this.#renew());
  }

  async #renew() {
    const connection = this.#attended;
    const expiresAtMs = this.#expiresAtMs;
    try {
      await this.renew();
    } catch (error) {
      if (connection !== this.#attended) return;
      this.#options.onError(/** @type {SnorkyError} */ (error));
      return this.#renewLater();
    }
    if (connection !== this.#attended) return; // the next connection's handshake had the new token
    this.#expiresAtMs = expiresAtMs; // the server uses the previous token until it has replied
    await this.#present("refresh");
  }

  /** @param {number} delayMs @param {() => Promise<void>} action */
  #after(delayMs, action) {
    this.#cancelTimer();
    this.#cancelTimer = this.#options.clock.after(Math.min(DELAY_MAX_MS, delayMs), () => void action());
  }
}

/** The error of a function that gave no token. @param {unknown} error */
export function noToken(error) {
  return new SnorkyError(`No token: ${error instanceof Error ? error.message : error}`, "token");
}

/** Return a token that has only the characters of one. Throws TypeError. @param {unknown} token */
export function checked(token) {
  if (typeof token !== "string" || !TOKEN.test(token)) throw new TypeError("A token is a text of letters, digits and -._~+");
  return token;
}

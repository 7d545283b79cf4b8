/**
 * Who this client is: the token that its handshakes bring, a new one before that expires, and one more if it is bad.
 *
 * A token that is a function is asked when there is none, before the present one expires, and once when the server
 * refuses it (4501); if the next one is refused as well, that is the end. What a handshake cannot tell, until when the
 * token is good, the service `auth` is asked on each connection.
 */

import { SnorkyError } from "./error.js";

/**
 * @typedef {import("./connection.js").Connection} Connection
 *
 * @typedef {string | (() => string | Promise<string>)} TokenSource
 *
 * @typedef {object} TokenOptions
 * @property {TokenSource | undefined} token
 * @property {import("./clock.js").Clock} clock
 * @property {() => number} random
 * @property {number} callTimeoutMs
 * @property {(error: SnorkyError) => void} onError the token was not renewed; tried again
 */

// RFC 9110 5.6.2: what a subprotocol is made of. A JWT is.
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;
const RETRY_MIN_MS = 1_000;
const RETRY_MS = 30_000; // while it is not known until when the token is good
// setTimeout takes no more; whoever is known for longer is asked about again then.
const DELAY_MAX_MS = 2 ** 31 - 1;

export class Token {
  #options;
  /** @type {string | null} */
  #value = null;
  #expiresAtMs = Infinity;
  /** The one that was refused has been replaced, and the new one has not proven itself. */
  #isLastTry = false;
  /** The connection that it is kept good on. @type {Connection | null} */
  #attended = null;
  #cancelTimer = () => {};

  /** Throws TypeError if it is no token. @param {TokenOptions} options */
  constructor(options) {
    this.#options = options;
    if (typeof options.token !== "function" && options.token !== undefined) this.#value = checked(options.token);
  }

  /** True if a new one can be had. */
  get isRenewable() {
    return typeof this.#options.token === "function";
  }

  /** True if `renew` is due before the next handshake. */
  get isMissing() {
    return this.isRenewable && (this.#value === null || this.#options.clock.now() >= this.#expiresAtMs);
  }

  /** What the handshake asks for because of it. */
  get subprotocols() {
    return this.#value === null ? [] : [`bearer.${this.#value}`];
  }

  /** Ask the application. Rejects with SnorkyError (`token`): it has none, or none that could be. */
  async renew() {
    const { token } = this.#options;
    if (typeof token !== "function") return;
    try {
      this.#value = checked(await token());
      this.#expiresAtMs = Infinity;
    } catch (error) {
      throw new SnorkyError(`No token: ${error instanceof Error ? error.message : error}`, "token");
    }
  }

  /** Know that the server has refused it. True if another one may be tried. */
  refused() {
    if (!this.isRenewable || this.#isLastTry) return false;
    this.#isLastTry = true;
    this.#value = null;
    return true;
  }

  /** See that it does not expire on this connection; the one before is forgotten. @param {Connection} connection */
  attend(connection) {
    this.stop();
    if (this.#value === null || !this.isRenewable) return;
    this.#attended = connection;
    void this.#present("authenticate");
  }

  /** Renew no more. */
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

  /** Between 70 and 90 % of the time that is left: not all clients at once. */
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
    if (connection !== this.#attended) return; // the next connection has brought the new one
    this.#expiresAtMs = expiresAtMs; // the server knows the one before, until it has answered
    await this.#present("refresh");
  }

  /** @param {number} delayMs @param {() => Promise<void>} action */
  #after(delayMs, action) {
    this.#cancelTimer();
    this.#cancelTimer = this.#options.clock.after(Math.min(DELAY_MAX_MS, delayMs), () => void action());
  }
}

/** @param {unknown} token */
function checked(token) {
  if (typeof token !== "string" || !TOKEN.test(token)) throw new TypeError("A token is a text of letters, digits and -._~+");
  return token;
}

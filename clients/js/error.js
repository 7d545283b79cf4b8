/**
 * What a call rejects with. `code` is stable and snake_case.
 *
 * Codes that come from this client, beside those of the server:
 * - `offline`: never sent, there was no connection in time. Safe to repeat.
 * - `closed`: never sent, the client was closed, told by the server not to come back, or refused for good: `status`.
 * - `disconnected`: sent, and the connection ended before the answer. The outcome is unknown.
 * - `timeout`: sent, and no answer came in time. The outcome is unknown.
 * - `queue_full`: never sent, what may wait is bounded.
 * - `too_large`: never sent, or the server ended the connection because of it.
 * - `token`: the application gave no token.
 * - `invalid_message`: the server sent what is not the protocol; of a call: it could not read it.
 */
export class SnorkyError extends Error {
  /**
   * @param {string} message
   * @param {string} code
   * @param {number | null} [retryAfterMs] set where trying again helps, and after how long
   * @param {number | null} [status] of HTTP, with which the handshake was refused
   */
  constructor(message, code, retryAfterMs = null, status = null) {
    super(message);
    this.name = "SnorkyError";
    /** @readonly */
    this.code = code;
    /** @readonly */
    this.retryAfterMs = retryAfterMs;
    /** @readonly */
    this.status = status;
  }

  /**
   * The error that an `error` message of the protocol means. A server of 2016 sends no code: `error`.
   *
   * @param {{message?: unknown, code?: unknown, retryAfterMs?: unknown}} reply
   */
  static from(reply) {
    return new SnorkyError(
      typeof reply.message === "string" ? reply.message : "Error",
      typeof reply.code === "string" ? reply.code : "error",
      typeof reply.retryAfterMs === "number" ? reply.retryAfterMs : null,
    );
  }
}

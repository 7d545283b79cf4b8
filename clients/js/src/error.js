/**
 * The error of calls, publications and subscriptions. `code` is stable and in snake_case: a code of the server or one
 * of this client:
 * - `offline`: never sent: there was no connection in time. Safe to repeat.
 * - `closed`: never sent: the client was closed, by the application, by a close code that forbids reconnecting, or
 *   because its handshake was refused permanently (then `status` may be set).
 * - `disconnected`: sent, but the connection ended before the reply. The outcome is unknown.
 * - `timeout`: sent, but there was no reply in time. The outcome is unknown.
 * - `queue_full`: never sent: too many publications or bytes are waiting.
 * - `too_large`: never sent, or the server closed the connection because of its size.
 * - `token`: the application provided no valid token.
 * - `invalid_message`: the server's message violates the protocol; of a call: the server could not parse it.
 */
export class SnorkyError extends Error {
  /**
   * @param {string} message
   * @param {string} code
   * @param {number | null} [retryAfterMs] try again after this time; null if that does not help
   * @param {number | null} [status] the HTTP status with which the handshake was refused
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
   * Create the error for an `error` message of the protocol. A server of 2016 sends no code; it is then `error`.
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

/** Calls that wait for a connection, bounded in number and time. */

import { SnorkyError } from "../error.js";

/**
 * @typedef {import("../wire/connection.js").Connection} Connection
 *
 * @typedef {object} Waiter
 * @property {(connection: Connection) => void} resolve
 * @property {(error: SnorkyError) => void} reject
 */

export class Waiting {
  #clock;
  #max;
  #offline;
  /** @type {Set<Waiter>} */
  #waiters = new Set();

  /**
   * offline: creates the error of a call that gets no connection in time.
   *
   * @param {import("../clock.js").Clock} clock @param {number} max @param {() => SnorkyError} offline
   */
  constructor(clock, max, offline) {
    this.#clock = clock;
    this.#max = max;
    this.#offline = offline;
  }

  /**
   * Wait for a connection. Rejects with SnorkyError (`offline`) after `timeoutMs`, or if too many calls wait.
   *
   * @param {number} timeoutMs @returns {Promise<Connection>}
   */
  connection(timeoutMs) {
    if (this.#waiters.size >= this.#max) return Promise.reject(tooMany());
    return new Promise((resolve, reject) => {
      const done = () => {
        cancel();
        this.#waiters.delete(waiter);
      };
      /** @type {Waiter} */
      const waiter = {
        resolve: (connection) => (done(), resolve(connection)),
        reject: (error) => (done(), reject(error)),
      };
      const cancel = this.#clock.after(timeoutMs, () => waiter.reject(this.#offline()));
      this.#waiters.add(waiter);
    });
  }

  /** Resolve all waiting calls with this connection, in their order. @param {Connection} connection */
  release(connection) {
    for (const waiter of [...this.#waiters]) waiter.resolve(connection);
  }

  /** Reject all waiting calls. @param {SnorkyError} error */
  close(error) {
    for (const waiter of [...this.#waiters]) waiter.reject(error);
  }
}

function tooMany() {
  return new SnorkyError("Too many calls wait for a connection", "offline");
}

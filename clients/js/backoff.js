/**
 * How long to wait before the next attempt: exponential, full jitter.
 *
 * A delay is uniform in [0, min(maxMs, baseMs * 2^failures)). The whole range is random because thousands of
 * clients lose one node in the same millisecond: a fixed part of the delay would keep them together.
 */
export class Backoff {
  #baseMs;
  #maxMs;
  #random;
  #failures = 0;

  /** @param {{baseMs?: number, maxMs?: number, random?: () => number}} [options] `random` as Math.random */
  constructor({ baseMs = 500, maxMs = 20_000, random = Math.random } = {}) {
    this.#baseMs = baseMs;
    this.#maxMs = maxMs;
    this.#random = random;
  }

  /** Delays handed out since the last reset. */
  get failures() {
    return this.#failures;
  }

  /** Count one failure; returns the delay in milliseconds before trying again. */
  next() {
    const ceilingMs = Math.min(this.#maxMs, this.#baseMs * 2 ** this.#failures);
    this.#failures += 1;
    return this.#random() * ceilingMs;
  }

  /** Forget the failures: a connection has proven itself. */
  reset() {
    this.#failures = 0;
  }
}

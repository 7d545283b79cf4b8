/**
 * Delays between attempts to connect: exponential backoff with full jitter.
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

  /** The number of failures since the last reset. */
  get failures() {
    return this.#failures;
  }

  /** Count a failure; returns the delay in milliseconds before the next attempt. */
  next() {
    const ceilingMs = Math.min(this.#maxMs, this.#baseMs * 2 ** this.#failures);
    this.#failures += 1;
    return this.#random() * ceilingMs;
  }

  /** Set the failures to 0: a connection was stable. */
  reset() {
    this.#failures = 0;
  }
}

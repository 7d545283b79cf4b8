/**
 * The clock and timers that the client uses; tests replace them.
 *
 * @typedef {object} Clock
 * @property {() => number} now milliseconds, monotonic
 * @property {(delayMs: number, action: () => void) => (() => void)} after runs `action` once;
 *   returns a function that cancels it
 */

/** @type {Clock} */
export const systemClock = {
  now: () => performance.now(),
  after(delayMs, action) {
    const timer = setTimeout(action, delayMs);
    return () => clearTimeout(timer);
  },
};

/**
 * Time as this client sees it; tests bring their own.
 *
 * @typedef {object} Clock
 * @property {() => number} now milliseconds, monotonic
 * @property {(delayMs: number, action: () => void) => (() => void)} after runs `action` once, returns what cancels it
 */

/** @type {Clock} */
export const systemClock = {
  now: () => performance.now(),
  after(delayMs, action) {
    const timer = setTimeout(action, delayMs);
    return () => clearTimeout(timer);
  },
};

/** Handlers of named events. */
export class Emitter {
  /** @type {Map<string, Set<(detail: any) => void>>} */
  #handlers = new Map();

  /** Add a handler; returns a function that removes it. @param {string} event @param {(detail: any) => void} handler */
  on(event, handler) {
    const seat = (/** @type {any} */ detail) => handler(detail); // the same function twice is two handlers
    const seats = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, seats.add(seat));
    return () => void seats.delete(seat);
  }

  /** Whether an event has a handler. @param {string} event */
  has(event) {
    return (this.#handlers.get(event)?.size ?? 0) > 0;
  }

  /** Call every handler; returns whether there was one. @param {string} event @param {any} detail */
  emit(event, detail) {
    const seats = this.#handlers.get(event);
    if (seats === undefined || seats.size === 0) return false;
    for (const seat of [...seats]) {
      if (seats.has(seat)) protect(() => seat(detail)); // an earlier handler may have removed it
    }
    return true;
  }
}

/**
 * Run an application's function. If it throws, the error is reported as uncaught and affects neither the connection
 * nor other handlers.
 *
 * @param {() => void} action
 */
export function protect(action) {
  try {
    action();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** Who wants to hear what. */
export class Emitter {
  /** @type {Map<string, Set<(detail: any) => void>>} */
  #handlers = new Map();

  /** Add a handler; returns what removes it. @param {string} event @param {(detail: any) => void} handler */
  on(event, handler) {
    const seat = (/** @type {any} */ detail) => handler(detail); // the same function twice is two handlers
    const seats = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, seats.add(seat));
    return () => void seats.delete(seat);
  }

  /** Call every handler; returns whether there was one. @param {string} event @param {any} detail */
  emit(event, detail) {
    const seats = this.#handlers.get(event);
    if (seats === undefined || seats.size === 0) return false;
    for (const seat of [...seats]) {
      if (seats.has(seat)) protect(() => seat(detail)); // not if a handler before it removed it
    }
    return true;
  }
}

/**
 * Run an application's function. What it throws is its own bug: it surfaces as an uncaught error, and harms
 * neither the connection nor other handlers.
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

/** A clock that tests advance, and a WebSocket whose server is the test. */

import { decode, encode } from "../src/wire/msgpack.js";

/** A `Clock`. */
export class FakeClock {
  #nowMs = 1_000_000;
  /** @type {Set<{atMs: number, action: () => void}>} */
  #timers = new Set();

  now = () => this.#nowMs;

  after = (/** @type {number} */ delayMs, /** @type {() => void} */ action) => {
    const timer = { atMs: this.#nowMs + delayMs, action };
    this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  };

  /** Advance the time; timers run in order, and promises settle between them. @param {number} ms */
  async pass(ms) {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      await settled();
      const due = [...this.#timers].filter((timer) => timer.atMs <= untilMs).sort((a, b) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      this.#timers.delete(due);
      this.#nowMs = due.atMs;
      due.action();
    }
    this.#nowMs = untilMs;
  }

  get timers() {
    return this.#timers.size;
  }
}

/** Wait until all pending microtasks have run: macrotasks run after them. */
export function settled() {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Every socket a client makes, in order; the server's side of them is scripted. */
export class FakeNetwork {
  /** @type {FakeSocket[]} */
  sockets = [];
  WebSocket;

  constructor() {
    const { sockets } = this;
    this.WebSocket = class extends FakeSocket {
      /** @param {string} url @param {string | string[]} [protocols] */
      constructor(url, protocols) {
        super(url, protocols);
        sockets.push(this);
      }
    };
  }

  /** The newest socket. */
  get last() {
    const socket = this.sockets.at(-1);
    if (socket === undefined) throw new Error("Nothing was dialled");
    return socket;
  }
}

export class FakeSocket {
  binaryType = "blob";
  onopen = () => {};
  onmessage = (/** @type {{data: unknown}} */ _event) => {};
  onclose = (/** @type {{code: number, reason: string}} */ _event) => {};
  onerror = (/** @type {unknown} */ _event) => {};
  /** The messages that the client sent, decoded. @type {{service: string, message: any}[]} */
  sent = [];
  /** @type {number | undefined} set when the client closed */
  closedWith;
  #isBinary;

  /** @param {string} url @param {string | string[]} [protocols] */
  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    this.#isBinary = protocols?.includes("snorky.msgpack") ?? false;
  }

  /** @param {any} data */
  send(data) {
    if (this.closedWith !== undefined) throw new Error("Sent on a closed socket");
    this.sent.push(/** @type {any} */ (this.#isBinary ? decode(data) : JSON.parse(data)));
  }

  /** @param {number} [code] */
  close(code = 1005) {
    this.closedWith ??= code;
  }

  // -- what the server does --

  open() {
    this.onopen();
  }

  /** @param {string} service @param {unknown} message */
  say(service, message) {
    const envelope = { service, message };
    this.onmessage({ data: this.#isBinary ? encode(envelope).buffer : JSON.stringify(envelope) });
  }

  /** @param {any} channel @param {any} message @param {object} [more] */
  bring(channel, message, more = {}) {
    this.say("pubsub", { type: "message", channel, message, ...more });
  }

  /** @param {number} [code] @param {string} [reason] */
  drop(code = 1006, reason = "") {
    this.onclose({ code, reason });
  }

  /** The requests of a command without a reply yet. @param {string} command */
  unanswered(command) {
    return this.sent.filter(({ message }) => message.command === command && !this.#answered.has(message.callId));
  }

  /** @type {Set<number>} */
  #answered = new Set();

  /**
   * Reply to every open request of a command, and let the client process the replies.
   *
   * @param {string} command @param {object} [reply] the default is a response of null
   */
  async answer(command, reply = { type: "response", data: null }) {
    const requests = this.unanswered(command);
    if (requests.length === 0) throw new Error(`Nobody asked to ${command}`);
    for (const { service, message } of requests) {
      this.#answered.add(message.callId);
      this.say(service, { ...reply, callId: message.callId });
    }
    await settled();
  }

  /** The commands of the client's requests. */
  get commands() {
    return this.sent.map(({ message }) => message.command);
  }
}

/**
 * Delivers the messages of one channel from one connection, in order and without duplicates.
 *
 * A topic that recovers subscribes with its present position. Messages that arrive before the reply are buffered. The
 * reply's messages are delivered first, then the buffered ones, then live ones. Only the next message by offset is
 * delivered: duplicates are dropped, and if one is missing, the feed subscribes again from the topic's position
 * (`repair`).
 *
 * During a move two connections deliver the channel, and the feed of the new one buffers until `release`. Offsets then
 * show which messages the old one delivered. Where they cannot (a gap, or no position), the feed subscribes again.
 *
 * The server's notification that the subscription has ended is delivered in order too. Before the reply it is that of an
 * earlier subscription on the same connection.
 */

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("../wire/connection.js").Notification} Notification
 *
 * @typedef {object} Recovery the reply to a subscription that recovers
 * @property {string | null} position null: the channel keeps no history
 * @property {boolean} recovered
 * @property {{message: any, offset: number, position: string, tombstone?: boolean}[]} messages
 *
 * @typedef {object} FeedEvents
 * @property {(topic: Topic, message: Notification) => void} onLoose a message without a position
 * @property {(topic: Topic) => void} repair subscribe again with a new feed; this one has ended
 * @property {(topic: Topic, notification: Notification) => void} onUnsubscribed the server has ended the subscription
 */

// Buffered messages: those of the few round trips until the reply, or of a move.
const KEPT_MAX = 10_000;

export class Feed {
  #topic;
  #events;
  /** The position in the request. @type {string | null} */
  #asked = null;
  #wasAsked = false;
  #wasAnswered = false;
  /** Messages that arrived before the reply; null after it. @type {Notification[] | null} */
  #early;
  /** Messages buffered while another connection delivers; null if none does. @type {Notification[] | null} */
  #held;
  /** The reply, kept until `release`. @type {Recovery | null} */
  #answer = null;
  #isOver = false;

  /** @param {Topic} topic @param {FeedEvents} events @param {boolean} isHeld */
  constructor(topic, events, isHeld) {
    this.#topic = topic;
    this.#events = events;
    this.recovers = topic.recovers;
    this.#early = this.recovers ? [] : null;
    this.#held = isHeld ? [] : null;
  }

  /** Whether `subscribe` was sent, so that the server may have a subscription. */
  get wasAsked() {
    return this.#wasAsked;
  }

  /** Whether the server has confirmed the subscription. */
  get wasAnswered() {
    return this.#wasAnswered;
  }

  /** Return the parameters of a `subscribe` request that is sent now. @param {string} [token] */
  ask(token) {
    const { channel, position } = this.#topic;
    this.#wasAsked = true;
    this.#asked = position;
    const side = this.#topic.isServerSide ? { serverSide: true } : {};
    const wish = this.recovers ? { recover: position ?? true } : {};
    return { channel, ...wish, ...side, ...(token === undefined ? {} : { token }) };
  }

  /** The server has begun the subscription without a request; `answered` must follow. */
  begin() {
    this.#wasAsked = true;
  }

  /** Ignore all further messages. */
  end() {
    this.#isOver = true;
  }

  /**
   * Deliver or buffer a notification of the channel. Returns false if the buffer is full.
   *
   * @param {Notification} notification of type `message`, `gap` or `unsubscribed`
   */
  hear(notification) {
    if (this.#isOver) return true;
    if (notification.type === "unsubscribed" && !this.#wasAnswered) {
      // If that has expired, this one takes its place.
      if (notification.code !== "expired") this.#events.onUnsubscribed(this.#topic, notification);
      return true;
    }
    const waiting = this.#early ?? this.#held;
    if (waiting === null) this.#deliver(notification);
    else if (waiting.length < KEPT_MAX) waiting.push(notification);
    else return false;
    return true;
  }

  /** Discard buffered messages: they belong to an earlier subscription that has ended. */
  clear() {
    if (this.#early !== null) this.#early = [];
  }

  /** Process the server's reply to `subscribe`. @param {unknown} data */
  answered(data) {
    const early = this.#early;
    this.#wasAnswered = true;
    if (this.#isOver || early === null) return;
    this.#early = null;
    const answer = recoveryOf(data);
    if (this.#held !== null) {
      this.#answer = answer;
      this.#held.push(...early);
    } else {
      this.#apply(answer, early);
    }
  }

  /** Deliver the buffered messages, and later ones as they arrive. */
  release() {
    const held = this.#held;
    this.#held = null;
    if (held === null || this.#isOver) return;
    const answer = this.#answer;
    if (this.#early !== null) return; // `answered` will deliver them
    if (answer === null || answer.position === null) this.#deliverAll(held);
    else this.#apply(answer, held);
  }

  /** @param {Recovery} answer @param {Notification[]} behind messages that arrived after it */
  #apply(answer, behind) {
    const topic = this.#topic;
    const hasMoved = topic.position !== this.#asked; // another connection delivered messages meanwhile
    const hasGap = !answer.recovered || behind.some(({ type }) => type === "gap"); // it may have reported the gap too
    if (hasMoved && (this.#asked === null || hasGap)) return this.#repair();
    if (answer.recovered) {
      let count = 0;
      for (const entry of answer.messages) {
        if (this.#isOver) return; // a handler closed the subscription
        const verdict = topic.sequence.judge(entry.offset, entry.position);
        if (verdict === "repeated") continue;
        if (verdict === "hole" && hasMoved) return this.#repair(); // into another epoch
        if (topic.take(entry)) count += 1;
      }
      if (!hasMoved) topic.sequence.moveTo(answer.position);
      if (this.#asked !== null) topic.recovered(count);
    } else if (this.#asked !== null || topic.hasBeenConfirmed || (topic.isServerSide && answer.position !== null)) {
      topic.lose(answer.position, "recovery");
    } else {
      topic.sequence.moveTo(answer.position); // the first subscription has missed nothing
    }
    this.#deliverAll(behind);
  }

  /** @param {Notification[]} notifications */
  #deliverAll(notifications) {
    for (const notification of notifications) {
      if (this.#isOver) return;
      this.#deliver(notification);
    }
  }

  /** @param {Notification} notification */
  #deliver(notification) {
    const topic = this.#topic;
    const { type, offset, position } = notification;
    if (type === "unsubscribed") return this.#events.onUnsubscribed(topic, notification);
    if (type === "gap") {
      topic.lose(typeof position === "string" ? position : null, "live");
      return;
    }
    const verdict = this.recovers ? topic.sequence.judge(offset, position) : "loose";
    if (verdict === "next") topic.take(notification);
    else if (verdict === "loose") this.#events.onLoose(topic, notification);
    else if (verdict === "hole") this.#repair();
  }

  #repair() {
    this.#isOver = true;
    this.#events.repair(this.#topic);
  }
}

/** Read a reply to `subscribe`; a server without recovery replies null. @param {any} data @returns {Recovery} */
function recoveryOf(data) {
  const position = typeof data?.position === "string" ? data.position : null;
  const messages = Array.isArray(data?.messages) ? data.messages : [];
  return { position, recovered: position !== null && data.recovered === true, messages };
}

/**
 * What one connection brings of one channel.
 *
 * A topic that recovers asks with the position where it stands. What comes before the answer waits for it; the answer's
 * messages come first, then those, then what comes live. A message that is not the next one is never delivered: a
 * repetition is dropped, and behind a hole the channel is asked for anew (`repair`), from where the topic stands.
 *
 * During a move two connections bring the channel, and the feed of the new one is held. When it is let go, offsets
 * tell what came before. Where they cannot (a gap, no position asked with), it is asked for anew.
 */

/**
 * @typedef {import("./topic.js").Topic} Topic
 * @typedef {import("./connection.js").Notification} Notification
 *
 * @typedef {object} Recovery what a subscription that recovers is answered
 * @property {string | null} position null: the channel keeps no history
 * @property {boolean} recovered
 * @property {{message: any, offset: number, position: string, tombstone?: boolean}[]} messages
 *
 * @typedef {object} FeedEvents
 * @property {(topic: Topic, message: Notification) => void} onLoose a message without a position
 * @property {(topic: Topic) => void} repair ask for the channel anew; this feed is over then
 */

// What comes before the answer or during a move: a few round trips' worth.
const KEPT_MAX = 10_000;

export class Feed {
  #topic;
  #events;
  /** The position that was asked with. */
  #asked;
  /** What came before the answer; null behind it. @type {Notification[] | null} */
  #early;
  /** What came while another connection delivers. @type {Notification[] | null} */
  #held;
  /** Of a feed that is held. @type {Recovery | null} */
  #answer = null;
  #isOver = false;

  /** @param {Topic} topic @param {FeedEvents} events @param {boolean} isHeld */
  constructor(topic, events, isHeld) {
    this.#topic = topic;
    this.#events = events;
    this.#asked = topic.position;
    this.recovers = topic.recovers;
    this.#early = this.recovers ? [] : null;
    this.#held = isHeld ? [] : null;
  }

  /** What to ask the server with. */
  get params() {
    const { channel } = this.#topic;
    return this.recovers ? { channel, recover: this.#asked ?? true } : { channel };
  }

  /** Hear no more of it. */
  end() {
    this.#isOver = true;
  }

  /**
   * Take what the connection brings. False if it has to be kept and there is no room.
   *
   * @param {Notification} notification of the channel: `message` or `gap`
   */
  hear(notification) {
    if (this.#isOver) return true;
    const waiting = this.#early ?? this.#held;
    if (waiting === null) this.#deliver(notification);
    else if (waiting.length < KEPT_MAX) waiting.push(notification);
    else return false;
    return true;
  }

  /** Know that what came so far was of a subscription before this one, which is given up. */
  clear() {
    if (this.#early !== null) this.#early = [];
  }

  /** Know what the server answered to the subscription. @param {unknown} data */
  answered(data) {
    const early = this.#early;
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

  /** Deliver what was held, and from now on what comes. */
  release() {
    const held = this.#held;
    this.#held = null;
    if (held === null || this.#isOver) return;
    const answer = this.#answer;
    if (this.#early !== null) return; // the answer is applied when it comes
    if (answer === null || answer.position === null) this.#deliverAll(held);
    else this.#apply(answer, held);
  }

  /** @param {Recovery} answer @param {Notification[]} behind */
  #apply(answer, behind) {
    const topic = this.#topic;
    const hasMoved = topic.position !== this.#asked; // another connection brought something meanwhile
    const hasGap = !answer.recovered || behind.some(({ type }) => type === "gap"); // that one may have told it as well
    if (hasMoved && (this.#asked === null || hasGap)) return this.#repair();
    if (answer.recovered) {
      let count = 0;
      for (const entry of answer.messages) {
        if (this.#isOver) return; // a handler has closed
        const verdict = topic.sequence.judge(entry.offset, entry.position);
        if (verdict === "repeated") continue;
        if (verdict === "hole" && hasMoved) return this.#repair(); // into another epoch
        if (topic.take(entry)) count += 1;
      }
      if (!hasMoved) topic.sequence.moveTo(answer.position);
      if (this.#asked !== null) topic.recovered(count);
    } else if (this.#asked !== null || topic.hasBeenConfirmed) {
      topic.lose(answer.position, "recovery");
    } else {
      topic.sequence.moveTo(answer.position); // asked for the first time: there is nothing that it could have missed
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

/** What a server means that answers; one that knows nothing of recovery answers null. @param {any} data @returns {Recovery} */
function recoveryOf(data) {
  const position = typeof data?.position === "string" ? data.position : null;
  const messages = Array.isArray(data?.messages) ? data.messages : [];
  return { position, recovered: position !== null && data.recovered === true, messages };
}

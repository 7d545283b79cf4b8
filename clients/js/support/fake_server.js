/**
 * A cluster of two nodes that speaks the protocol, in memory and on a fake clock, with configurable faults.
 *
 * It gives the guarantees of a real cluster: a channel's notifications arrive in order, there is no gap between the
 * reply to a subscription and the notifications after it, and an idempotency key is used once. `Faults` lists the
 * exceptions. A node may lag behind the channel. Connections deliver late but in order; messages in flight are lost when
 * a connection is cut.
 *
 * A subscription token is `exp.MS`, the time at which it expires. A subscription with one ends with it.
 */

import { FakeSocket } from "./fakes.js";

const KEEP = 40; // entries of a channel's history: few, so that some clients reconnect too late to recover

/**
 * Probabilities, from 0 to 1.
 *
 * @typedef {object} Faults
 * @property {number} dropped a live notification is lost, unnoticed by the node
 * @property {number} doubled a live notification is sent twice
 * @property {number} lateAnswer a reply arrives after messages that were sent after it
 * @property {number} noAnswer a request is executed, but its reply is lost
 * @property {number} unavailable a request is refused, though it may have been executed
 * @property {number} refused a handshake fails
 *
 * @typedef {{offset: number, position: string, message: any}} Entry
 * @typedef {{epoch: number, entries: Entry[], offset: number, keys: Set<string>, log: any[]}} Channel
 * @typedef {{isRecovering: boolean, epoch: number, offset: number, cancelExpiry: () => void}} Standing where a connection
 *   is on a channel
 *
 * @typedef {object} ServerOptions
 * @property {import("./fakes.js").FakeClock} clock
 * @property {() => number} random
 * @property {Faults} faults
 */

export class FakeServer {
  #clock;
  #random;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Set<ServedSocket>} */
  #sockets = new Set();
  /** By node: when it has processed all its events so far. @type {number[]} */
  #readyAtMs = [0, 0];
  #entropy = 0;
  faults;
  WebSocket;

  /** @param {ServerOptions} options */
  constructor({ clock, random, faults }) {
    this.#clock = clock;
    this.#random = random;
    this.faults = faults;
    const server = this;
    this.WebSocket = class extends ServedSocket {
      /** @param {string} url @param {string | string[]} [protocols] */
      constructor(url, protocols) {
        super(url, protocols, server, clock, random);
      }
    };
  }

  /** All messages that were ever published to a channel, in order. @param {string} name */
  log(name) {
    return this.#channel(name).log;
  }

  /** @param {string} name @param {any} message */
  publish(name, message) {
    const channel = this.#channel(name);
    channel.offset += 1;
    const position = `e${channel.epoch}:${channel.offset}:${(this.#entropy += 1)}`;
    const entry = { offset: channel.offset, position, message };
    channel.entries.push(entry);
    channel.log.push(message);
    if (channel.entries.length > KEEP) channel.entries.shift();
    const { epoch } = channel;
    this.#onEachNode((socket) => this.#bring(socket, name, epoch, entry));
  }

  /** Lose a channel's history, as a Redis that restarts empty. @param {string} name */
  forget(name) {
    const channel = this.#channel(name);
    Object.assign(channel, { epoch: channel.epoch + 1, offset: 0, entries: [] });
    const { epoch } = channel;
    this.#onEachNode((socket) => {
      const standing = socket.channels.get(name);
      if (standing === undefined || standing.epoch >= epoch) return;
      Object.assign(standing, { epoch, offset: 0 });
      if (standing.isRecovering) socket.tell("pubsub", { type: "gap", channel: name, position: `e${epoch}:0:0` });
    });
  }

  /** Cut a connection; messages in flight are lost. */
  cut() {
    this.#any()?.cut(1006);
  }

  /** Announce on a connection that its node leaves, and close it after the grace period. @param {number} graceMs */
  drain(graceMs) {
    const socket = this.#any();
    if (socket === undefined) return;
    socket.tell("gateway", { type: "moving", graceMs });
    this.#clock.after(graceMs, () => socket.end(1001));
  }

  // -- for its sockets -----------------------------------------------------------------------------------------

  /** @param {ServedSocket} socket */
  accept(socket) {
    if (this.#chance(this.faults.refused)) return socket.cut(1006);
    this.#sockets.add(socket);
    socket.open();
  }

  /** @param {ServedSocket} socket */
  lose(socket) {
    this.#sockets.delete(socket);
    for (const standing of socket.channels.values()) standing.cancelExpiry();
  }

  /** @param {ServedSocket} socket @param {string} service @param {any} request */
  receive(socket, service, { command, params, callId }) {
    const isRefused = service === "pubsub" && this.#chance(this.faults.unavailable);
    if (isRefused && this.#chance(0.5)) return this.#answer(socket, service, callId, unavailable);
    const reply = service === "pubsub" ? this.#serve(socket, command, params) : { type: "response", data: null };
    const isUndone = isRefused && command === "publish"; // only a publication may be executed although it is refused
    this.#answer(socket, service, callId, isUndone ? unavailable : reply);
  }

  // -- inner ---------------------------------------------------------------------------------------------------

  /** @param {ServedSocket} socket @param {string} service @param {unknown} callId @param {object} reply */
  #answer(socket, service, callId, reply) {
    if (this.#chance(this.faults.noAnswer)) return;
    socket.tell(service, { ...reply, callId }, this.#chance(this.faults.lateAnswer) ? 50 : 0);
  }

  /** @param {ServedSocket} socket @param {string} command @param {any} params @returns {object} */
  #serve(socket, command, { channel: name, message, key, recover, token }) {
    const channel = this.#channel(name);
    const leftMs = token === undefined ? Infinity : Number(token.slice("exp.".length)) - this.#clock.now();
    if (leftMs <= 0) return { type: "error", message: "Subscription token expired", code: "token_expired" };
    const expiry = token === undefined ? {} : { expiresInS: Math.floor(leftMs / 1_000) };
    const present = socket.channels.get(name);
    if (command === "publish") {
      const scope = `${socket.scope} ${key}`;
      if (key === undefined || !channel.keys.has(scope)) this.publish(name, message);
      channel.keys.add(scope);
      return { type: "response", data: null };
    }
    if (command === "unsubscribe") {
      present?.cancelExpiry();
      const isGone = socket.channels.delete(name);
      return isGone ? { type: "response", data: null } : { type: "error", message: "Not subscribed" };
    }
    if (command === "refreshSubscription") {
      if (present === undefined) return { type: "error", message: "Not subscribed", code: "not_subscribed" };
      this.#expire(socket, name, present, leftMs);
      return { type: "response", data: expiry };
    }
    if (present !== undefined) return { type: "error", message: "Already subscribed" };
    const { epoch, offset } = channel;
    const standing = { isRecovering: recover !== undefined, epoch, offset, cancelExpiry() {} };
    socket.channels.set(name, standing);
    if (token !== undefined) this.#expire(socket, name, standing, leftMs);
    if (recover !== undefined) return { type: "response", data: { ...this.#recover(channel, recover), ...expiry } };
    return { type: "response", data: token === undefined ? null : expiry };
  }

  /** End a subscription after `leftMs`, and not earlier. @param {ServedSocket} socket @param {string} name @param {Standing} standing @param {number} leftMs */
  #expire(socket, name, standing, leftMs) {
    standing.cancelExpiry();
    standing.cancelExpiry = this.#clock.after(leftMs, () => {
      socket.channels.delete(name);
      socket.tell("pubsub", { type: "unsubscribed", channel: name, code: "expired", reason: "Token expired" });
    });
  }

  /** @param {Channel} channel @param {true | string} since */
  #recover(channel, since) {
    const { epoch, offset, entries } = channel;
    const position = entries.at(-1)?.position ?? `e${epoch}:${offset}:0`;
    if (since === true) return { position, recovered: true, messages: [] };
    const [sinceEpoch, sinceOffset] = since.split(":");
    const oldest = offset - entries.length;
    const recovered = sinceEpoch === `e${epoch}` && Number(sinceOffset) >= oldest && Number(sinceOffset) <= offset;
    return { position, recovered, messages: recovered ? entries.slice(Number(sinceOffset) - oldest) : [] };
  }

  /** @param {ServedSocket} socket @param {string} name @param {number} epoch @param {Entry} entry */
  #bring(socket, name, epoch, { offset, position, message }) {
    const standing = socket.channels.get(name);
    if (standing === undefined || standing.epoch > epoch) return;
    if (standing.epoch === epoch && standing.offset >= offset) return; // it was in the reply
    Object.assign(standing, { epoch, offset });
    const told = standing.isRecovering ? { offset, position } : {};
    const times = this.#chance(this.faults.dropped) ? 0 : this.#chance(this.faults.doubled) ? 2 : 1;
    for (let time = 0; time < times; time++) socket.tell("pubsub", { type: "message", channel: name, message, ...told });
  }

  /** Run an action for every connection, on each node with its own delay. @param {(socket: ServedSocket) => void} action */
  #onEachNode(action) {
    for (const node of [0, 1]) {
      const atMs = Math.max(this.#readyAtMs[node] ?? 0, this.#clock.now() + this.#random() ** 8 * 2_000);
      this.#readyAtMs[node] = atMs;
      this.#clock.after(atMs - this.#clock.now(), () => {
        for (const socket of this.#sockets) if (socket.node === node) action(socket);
      });
    }
  }

  /** @param {string} name @returns {Channel} */
  #channel(name) {
    const channel = this.#channels.get(name) ?? { epoch: 1, entries: [], offset: 0, keys: new Set(), log: [] };
    this.#channels.set(name, channel);
    return channel;
  }

  #any() {
    return [...this.#sockets][Math.floor(this.#random() * this.#sockets.size)];
  }

  /** @param {number} share */
  #chance(share) {
    return this.#random() < share;
  }
}

const unavailable = { type: "error", message: "Unavailable", code: "unavailable", retryAfterMs: 200 };

/** A connection to one of the nodes. */
export class ServedSocket extends FakeSocket {
  #server;
  #clock;
  #random;
  #isGone = false;
  /** The arrival time of the latest message in each direction; it keeps the order. */
  #thereAtMs = 0;
  #hereAtMs = 0;
  node;
  /** The scope of idempotency keys: the identity, or this connection. */
  scope;
  /** @type {Map<string, Standing>} */
  channels = new Map();

  /**
   * @param {string} url @param {string | string[] | undefined} protocols @param {FakeServer} server
   * @param {import("./fakes.js").FakeClock} clock @param {() => number} random
   */
  constructor(url, protocols, server, clock, random) {
    super(url, protocols);
    this.#server = server;
    this.#clock = clock;
    this.#random = random;
    this.node = random() < 0.5 ? 0 : 1;
    this.scope = protocols?.[1] ?? random();
    clock.after(this.#latencyMs(), () => void (this.#isGone || server.accept(this)));
  }

  /** @override @param {any} data */
  send(data) {
    super.send(data);
    const { service, message } = /** @type {any} */ (this.sent.pop());
    this.#thereAtMs = Math.max(this.#thereAtMs, this.#clock.now() + this.#latencyMs());
    this.#clock.after(this.#thereAtMs - this.#clock.now(), () => {
      if (!this.#isGone) this.#server.receive(this, service, message);
    });
  }

  /** @override @param {number} [code] */
  close(code) {
    super.close(code);
    this.#leave();
  }

  // -- what the server does --

  /** Send a message. @param {string} service @param {object} message @param {number} [lateMs] later ones may overtake it */
  tell(service, message, lateMs = 0) {
    this.#hereAtMs = Math.max(this.#hereAtMs, this.#clock.now() + this.#latencyMs());
    this.#clock.after(this.#hereAtMs - this.#clock.now() + lateMs, () => {
      if (!this.#isGone) this.say(service, message);
    });
  }

  /** Close it after the messages in flight have arrived. @param {number} code */
  end(code) {
    this.#clock.after(Math.max(0, this.#hereAtMs - this.#clock.now()), () => this.cut(code));
  }

  /** @param {number} code */
  cut(code) {
    if (this.#isGone) return;
    this.#leave();
    this.drop(code);
  }

  #leave() {
    this.#isGone = true;
    this.#server.lose(this);
  }

  #latencyMs() {
    return 1 + this.#random() ** 4 * 60;
  }
}

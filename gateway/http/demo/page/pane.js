/** One client of the demo: its connection, its channel, and the messages it receives. */

import { connect, json, msgpack } from "/client/snorky.js";

import { Log } from "./log.js";

/**
 * The panes' publications. `page` identifies the clock of `sentAt`: a latency is computed only on the same page.
 *
 * @typedef {{text: string, from: string, page: string, sentAt: number}} Publication
 *
 * @typedef {object} PaneOptions
 * @property {string} letter "A" or "B"
 * @property {URL} url of the WebSocket endpoint
 * @property {string} channel
 * @property {(channel: string) => void} onChannel
 * @property {(version: string) => void} onVersion
 */

const PAGE = Math.random().toString(36).slice(2);
const LATENCIES_MAX = 50; // for the median
const STATUS = { connecting: "connecting", open: "connected", waiting: "reconnecting", closed: "disconnected" };
const now = () => performance.timeOrigin + performance.now();

export class Pane {
  #options;
  #channel;
  /** @type {import("/client/snorky.js").Client | null} */
  #client = null;
  /** @type {import("/client/snorky.js").Subscription | null} */
  #subscription = null;
  #codec = json;
  #node = "";
  #hasBeenOpen = false; // the present client
  /** @type {number[]} */
  #latenciesMs = [];
  #log;

  /** @param {PaneOptions} options */
  constructor(options) {
    this.#options = options;
    this.#channel = options.channel;
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById("pane"));
    const copy = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
    this.root = /** @type {HTMLElement} */ (copy.firstElementChild);
    this.#log = new Log(this.#find("log"), `Messages of client ${options.letter}`);
    this.#prepare();
  }

  /** Open a connection and join the channel. */
  connect() {
    this.#client?.close();
    const client = connect(this.#options.url, { encoding: this.#codec });
    this.#client = client;
    this.#hasBeenOpen = false;
    client.on("open", () => {
      this.#showStatus();
      void this.#ask(client);
    });
    client.on("close", ({ code, reason, willReconnect }) => {
      if (willReconnect) this.#log.note(`Connection lost (${reason || code}), trying again`);
      else if (code >= 4500) this.#log.note(`The gateway closed the connection: ${reason || code}`, true);
      this.#showStatus();
    });
    client.on("reconnecting", () => this.#showStatus());
    client.on("moving", () => this.#log.note("The node is leaving, moving to another"));
    client.on("error", ({ error }) => this.#log.note(error.message, true));
    this.#join(client);
    this.#showStatus();
  }

  disconnect() {
    this.#client?.close();
    this.#client = null;
    this.#subscription = null;
    this.#showStatus();
  }

  #prepare() {
    const { letter, channel } = this.#options;
    this.root.dataset.testid = `pane-${letter.toLowerCase()}`;
    this.root.setAttribute("aria-label", `Client ${letter}`);
    const badge = this.#part("letter");
    badge.textContent = letter;
    badge.dataset.sender = letter;
    badge.setAttribute("aria-hidden", "true");
    this.#part("letter-name").textContent = letter;
    this.#input("channel").value = channel;

    this.#find("connect").addEventListener("click", () => (this.#client === null ? this.connect() : this.disconnect()));
    this.#part("join").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#changeChannel(this.#input("channel").value);
    });
    this.#part("send").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#publish();
    });
    for (const codec of [json, msgpack]) {
      const choice = this.#input(`encoding-${codec.name}`);
      choice.name = `encoding-${letter}`;
      choice.addEventListener("change", () => this.#changeEncoding(codec));
    }
  }

  /** Ask which node serves this client. @param {import("/client/snorky.js").Client} client */
  async #ask(client) {
    try {
      const info = await client.call("gateway", "info");
      if (client !== this.#client) return;
      if (this.#hasBeenOpen) this.#log.note(`Connected again, to ${info.node}`);
      this.#hasBeenOpen = true;
      this.#node = info.node;
      this.#find("node").textContent = info.node;
      this.#find("node").title = `connection ${info.connection}`;
      this.#find("encoding").textContent = info.encoding;
      this.#options.onVersion(info.version);
    } catch {
      // the connection has ended: the next one asks again
    }
  }

  /** @param {import("/client/snorky.js").Client} client */
  #join(client) {
    const channel = this.#channel;
    this.#subscription?.close();
    const subscription = client.subscribe(channel, (message) => this.#show(message));
    this.#subscription = subscription;
    subscription.ready.then(
      () => this.#subscription === subscription && this.#log.note(`Joined ${channel}, speaking ${client.encoding}`),
      () => {}, // the client's event `error` reports it
    );
  }

  /** @param {string} channel */
  #changeChannel(channel) {
    this.#options.onChannel(channel);
    if (channel === this.#channel) return;
    this.#channel = channel;
    if (this.#client !== null) this.#join(this.#client);
  }

  /** @param {import("/client/snorky.js").Codec} codec */
  #changeEncoding(codec) {
    this.#codec = codec;
    this.#latenciesMs = [];
    this.#find("latency").textContent = "–";
    this.#find("median").textContent = "";
    if (this.#client !== null) this.connect();
  }

  async #publish() {
    const input = this.#input("message");
    const text = input.value;
    if (text === "" || this.#client === null) return;
    input.value = "";
    /** @type {Publication} */
    const publication = { text, from: this.#options.letter, page: PAGE, sentAt: now() };
    try {
      await this.#client.publish(this.#channel, publication);
    } catch (error) {
      this.#log.note(`Not sent: ${error instanceof Error ? error.message : error}`, true);
    }
  }

  /** @param {any} message from a pane, or any JSON from another publisher */
  #show(message) {
    const heardAt = now();
    const isOurs = typeof message?.text === "string" && typeof message.from === "string";
    /** @type {number | null} */
    let latencyMs = null;
    if (isOurs && message.page === PAGE && typeof message.sentAt === "number") {
      latencyMs = Math.max(0, heardAt - message.sentAt);
      this.#showLatency(latencyMs);
    }
    // The received bytes are not available here; encoding the message again gives the same size.
    const encoded = this.#codec.encode({ service: "pubsub", message: { type: "message", channel: this.#channel, message } });
    this.#log.add({
      sender: isOurs ? message.from : null,
      text: isOurs ? message.text : typeof message === "string" ? message : JSON.stringify(message),
      isCode: !isOurs && typeof message !== "string",
      encoding: this.#codec.name,
      bytes: typeof encoded === "string" ? new TextEncoder().encode(encoded).length : encoded.length,
      latencyMs,
      node: this.#node,
    });
  }

  /** @param {number} latencyMs */
  #showLatency(latencyMs) {
    this.#latenciesMs.push(latencyMs);
    if (this.#latenciesMs.length > LATENCIES_MAX) this.#latenciesMs.shift();
    const sorted = this.#latenciesMs.toSorted((a, b) => a - b);
    const medianMs = sorted[Math.floor(sorted.length / 2)] ?? latencyMs;
    this.#find("latency").textContent = `${latencyMs.toFixed(1)} ms`;
    this.#find("median").textContent = sorted.length > 2 ? `median ${medianMs.toFixed(1)}` : "";
  }

  #showStatus() {
    const state = this.#client?.state ?? "closed";
    const status = this.#find("status");
    status.textContent = STATUS[state];
    status.dataset.state = state;
    const isOn = this.#client !== null && state !== "closed";
    if (!isOn) this.#client = null;
    this.#find("connect").textContent = isOn ? "Disconnect" : "Connect";
    this.#button("send").disabled = !isOn;
    if (state !== "open") {
      this.#node = "";
      this.#find("node").textContent = "–";
      this.#find("encoding").textContent = "";
    }
  }

  /** @param {string} testid */
  #find(testid) {
    return this.#select(`[data-testid="${testid}"]`);
  }

  /** @param {string} name */
  #part(name) {
    return this.#select(`[data-of="${name}"]`);
  }

  /** @param {string} testid */
  #input(testid) {
    return /** @type {HTMLInputElement} */ (this.#find(testid));
  }

  /** @param {string} testid */
  #button(testid) {
    return /** @type {HTMLButtonElement} */ (this.#find(testid));
  }

  /** @param {string} selector */
  #select(selector) {
    const found = this.root.querySelector(selector);
    if (!(found instanceof HTMLElement)) throw new Error(`No ${selector} in the pane`);
    return found;
  }
}

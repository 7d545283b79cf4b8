/** The options of a client and their defaults. */

import { systemClock } from "./clock.js";
import { json } from "./wire/json.js";

/**
 * @typedef {object} ClientOptions
 * @property {"json" | import("./wire/json.js").Codec} [encoding] "json", or a codec such as `msgpack`
 * @property {import("./wire/connection.js").SocketClass} [WebSocket] needed if there is no global one (Node < 22: use `ws`)
 * @property {typeof globalThis.fetch} [fetch] used to find out why a handshake was refused, if the WebSocket does not
 *   report it
 * @property {import("./session/token.js").TokenSource} [token] authenticates the client. A function is called for the first
 *   token, and for the next one before that expires
 * @property {boolean} [hasIdentity] default: whether there is a token. True: the gateway authenticates this client on
 *   every connection (perhaps by a cookie), so publications can be sent again on another connection
 * @property {number} [callTimeoutMs] 10 000: from the call to its reply, including the wait for a connection
 * @property {number} [connectTimeoutMs] 10 000: for the handshake
 * @property {number} [backoffBaseMs] 500: maximum delay before the first retry; it doubles with each failure
 * @property {number} [backoffMaxMs] 20 000: maximum delay before any retry
 * @property {number} [probeAfterMs] 30 000: time without any message after which the server is probed; 0: never
 * @property {number} [probeTimeoutMs] 10 000: time without any message after the probe until the connection is closed
 * @property {number} [waitingCallsMax] 1 000: calls that may wait for a connection
 * @property {number} [publishMaxAgeMs] 60 000: from `publish` to its reply, over all connections. The server remembers
 *   idempotency keys for 300 000
 * @property {number} [queueMax] 1 000: publications without a reply
 * @property {number} [queueMaxBytes] 1 048 576: encoded size of the publications without a reply
 * @property {number} [messageMaxBytes] 65 536: encoded size of one message with its envelope. Use the gateway's
 *   `message_max_bytes`. A larger message is rejected at the call
 * @property {import("./clock.js").Clock} [clock]
 * @property {() => number} [random] as Math.random
 *
 * @typedef {Required<Omit<ClientOptions, "encoding" | "token" | "fetch">> & {fetch: typeof globalThis.fetch | undefined}
 *   & {url: string, codec: import("./wire/json.js").Codec, token: import("./session/token.js").TokenSource | undefined}} Settings
 */

/**
 * Add the defaults to the options.
 *
 * Throws TypeError: there is no WebSocket, or the encoding is unknown.
 *
 * @param {string | URL} url absolute, or relative to the page; http(s) means ws(s)
 * @param {ClientOptions} options
 * @returns {Settings}
 */
export function settle(url, options) {
  const { encoding = "json", WebSocket = globalThis.WebSocket, token, ...rest } = options;
  if (WebSocket === undefined) throw new TypeError("No global WebSocket here: pass one, as in connect(url, {WebSocket})");
  const codec = encoding === "json" ? json : encoding;
  if (typeof codec !== "object") {
    throw new TypeError(`No encoding ${codec}: pass a codec, as in connect(url, {encoding: msgpack})`);
  }
  const settings = {
    callTimeoutMs: 10_000,
    connectTimeoutMs: 10_000,
    backoffBaseMs: 500,
    backoffMaxMs: 20_000,
    probeAfterMs: 30_000,
    probeTimeoutMs: 10_000,
    waitingCallsMax: 1_000,
    hasIdentity: token !== undefined,
    publishMaxAgeMs: 60_000,
    queueMax: 1_000,
    queueMaxBytes: 1_048_576,
    messageMaxBytes: 65_536,
    fetch: globalThis.fetch?.bind(globalThis),
    clock: systemClock,
    random: Math.random,
  };
  for (const [name, value] of Object.entries(rest)) {
    if (value !== undefined) Object.assign(settings, { [name]: value });
  }
  return { ...settings, url: absolute(url), WebSocket, codec, token };
}

/** @param {string | URL} url */
function absolute(url) {
  const target = new URL(url, globalThis.location?.href);
  target.protocol = target.protocol.replace(/^http/, "ws");
  return target.href;
}

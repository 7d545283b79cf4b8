/** What a client may be told, and what it does untold. */

import { systemClock } from "./clock.js";
import { json } from "./json.js";

/**
 * @typedef {object} ClientOptions
 * @property {"json" | import("./json.js").Codec} [encoding] "json", or a codec such as `msgpack`
 * @property {import("./connection.js").SocketClass} [WebSocket] where there is no global one (Node < 22: `ws`)
 * @property {typeof globalThis.fetch} [fetch] asks why a handshake was refused, where the WebSocket does not tell
 * @property {import("./token.js").TokenSource} [token] who this client is; a function is asked for it, and for the
 *   next one before it expires
 * @property {boolean} [hasIdentity] true if there is a token: the gateway knows who this client is, on every connection
 *   (perhaps by a cookie); so publications can be repeated on another one
 * @property {number} [callTimeoutMs] 10 000: from the call to its answer, waiting for a connection included
 * @property {number} [connectTimeoutMs] 10 000
 * @property {number} [backoffBaseMs] 500: the first retry comes within this, each further within twice as much
 * @property {number} [backoffMaxMs] 20 000
 * @property {number} [probeAfterMs] 30 000: silence before the server is asked for a sign of life; 0: never
 * @property {number} [probeTimeoutMs] 10 000
 * @property {number} [waitingCallsMax] 1 000: calls that may wait for a connection
 * @property {number} [publishMaxAgeMs] 60 000: from `publish` to its answer, however many connections that takes. The
 *   server knows idempotency keys for 300 000
 * @property {number} [queueMax] 1 000: publications that are not answered
 * @property {number} [queueMaxBytes] 1 048 576: of them as they are sent
 * @property {number} [messageMaxBytes] 65 536: of one message with all that stands around it; the gateway's
 *   `message_max_bytes`. More is refused at the call
 * @property {import("./clock.js").Clock} [clock]
 * @property {() => number} [random] as Math.random
 *
 * @typedef {Required<Omit<ClientOptions, "encoding" | "token" | "fetch">> & {fetch: typeof globalThis.fetch | undefined}
 *   & {url: string, codec: import("./json.js").Codec, token: import("./token.js").TokenSource | undefined}} Settings
 */

/**
 * Fill in what was left open.
 *
 * Throws TypeError if there is no WebSocket to use or the encoding is unknown.
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

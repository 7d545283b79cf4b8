/**
 * Why a handshake failed, as far as that can be known, and whether trying again can help.
 *
 * The package `ws` reports the HTTP response. Other WebSockets hide it, so the client requests the URL by `fetch`. A
 * browser shows that response to the page if the origin is the same or the server allows it, as a gateway does.
 * `fetch` may be refused for reasons that do not concern WebSockets, so only some statuses count as permanent.
 *
 * @typedef {object} Refusal
 * @property {number | null} status the HTTP status, if there was a response
 * @property {string} text
 * @property {boolean} isFinal trying again cannot help
 */

const MAY_HEAL = [408, 425, 429];
const FINAL_BY_FETCH = [301, 302, 303, 307, 308, 403, 404, 410]; // a gateway's WebSocket endpoint replies 426
const TEXT_MAX = 200;
// Error codes of Node and OpenSSL: the server does not use TLS or its certificate is not valid; it does not use HTTP.
const TLS = /^(EPROTO$|ERR_SSL_|ERR_TLS_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|INVALID_CA|INVALID_PURPOSE)/;
const NO_HTTP = /^HPE_/;
/** @type {Record<number, string>} */
const HINTS = {
  401: "the server, or a proxy in front of it, requires authentication",
  403: "the origin of this page is not allowed, or a proxy refuses",
  404: "there is no WebSocket endpoint at this URL",
  426: "a proxy in front of the server does not forward WebSockets",
};

/** The refusal that a socket's error event describes; null: unknown. @param {any} event @returns {Refusal | null} */
export function refusalOf(event) {
  const error = event?.error;
  const message = String(error?.message ?? event?.message ?? "");
  const status = Number(/^Unexpected server response: (\d+)$/.exec(message)?.[1] ?? 0); // of `ws`
  if (status > 0) return { status, text: textOf(status), isFinal: status >= 300 && status < 500 && !MAY_HEAL.includes(status) };
  if (/^(Invalid (Sec-WebSocket-Accept|Upgrade) header|Server sent )/.test(message)) {
    return { status: 101, text: `The server's handshake is wrong: ${message}`, isFinal: true };
  }
  return ofCode(error);
}

/**
 * Request a WebSocket URL by `fetch` to find out why it is refused; null: unknown. Never rejects.
 *
 * @param {string} url @param {typeof globalThis.fetch} fetch @param {AbortSignal} signal
 * @returns {Promise<Refusal | null>}
 */
export async function probe(url, fetch, signal) {
  try {
    const response = await fetch(url.replace(/^ws/, "http"), { redirect: "manual", cache: "no-store", signal });
    if (response.type === "opaqueredirect") return { status: null, text: "The URL redirects; WebSockets do not follow", isFinal: true };
    const { status } = response;
    if (status < 200 || status === 400 || status === 405 || status === 426) return null; // as a working WebSocket endpoint replies
    const told = status === 403 ? (await response.text()).trim().slice(0, TEXT_MAX) : "";
    return { status, text: textOf(status, told), isFinal: FINAL_BY_FETCH.includes(status) };
  } catch (error) {
    return ofCode(/** @type {any} */ (error)?.cause); // set by Node; a browser hides the cause
  }
}

/** @param {any} error from Node @returns {Refusal | null} */
function ofCode(error) {
  const code = error?.code;
  if (typeof code !== "string") return null;
  const detail = `${code}: ${String(error.message ?? "").trim().slice(0, TEXT_MAX)}`;
  if (TLS.test(code)) return { status: null, text: `No TLS connection: ${detail}`, isFinal: true };
  if (NO_HTTP.test(code)) return { status: null, text: `The server does not speak HTTP: ${detail}`, isFinal: true };
  return { status: null, text: detail, isFinal: false };
}

/** @param {number} status @param {string} [told] the server's explanation */
function textOf(status, told = "") {
  const hint = told || HINTS[status] || (status < 300 ? "not a WebSocket endpoint" : "");
  return `The handshake was answered with ${status}${hint && `: ${hint}`}`;
}

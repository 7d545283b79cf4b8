/**
 * Why a handshake failed, as far as that can be known, and whether trying again can help.
 *
 * The package `ws` tells what was answered. Other WebSockets hide it, so the URL is asked once more, by `fetch`: in a
 * browser the answer is to be seen if the page has the same origin or the server allows it, as a gateway does.
 * What `fetch` is answered may be about `fetch` alone: only some statuses count there.
 *
 * @typedef {object} Refusal
 * @property {number | null} status of HTTP
 * @property {string} text
 * @property {boolean} isFinal trying again cannot help
 */

const MAY_HEAL = [408, 425, 429];
const FINAL_BY_FETCH = [301, 302, 303, 307, 308, 403, 404, 410]; // a gateway answers 426: it is a WebSocket endpoint
const TEXT_MAX = 200;
// Of Node (and OpenSSL): the peer speaks no TLS or has no good certificate; it speaks no HTTP.
const TLS = /^(EPROTO$|ERR_SSL_|ERR_TLS_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|INVALID_CA|INVALID_PURPOSE)/;
const NO_HTTP = /^HPE_/;
/** @type {Record<number, string>} */
const HINTS = {
  401: "the server, or a proxy in front of it, does not know who you are",
  403: "the origin of this page is not allowed, or a proxy refuses",
  404: "there is no WebSocket endpoint at this URL",
  426: "a proxy on the way does not pass WebSockets on",
};

/** What the error event of a socket tells; null: nothing. @param {any} event @returns {Refusal | null} */
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
 * Ask the URL of a WebSocket why; null: that cannot be known. Never rejects.
 *
 * @param {string} url @param {typeof globalThis.fetch} fetch @param {AbortSignal} signal
 * @returns {Promise<Refusal | null>}
 */
export async function probe(url, fetch, signal) {
  try {
    const response = await fetch(url.replace(/^ws/, "http"), { redirect: "manual", cache: "no-store", signal });
    if (response.type === "opaqueredirect") return { status: null, text: "The URL redirects; WebSockets do not follow", isFinal: true };
    const { status } = response;
    if (status < 200 || status === 400 || status === 405 || status === 426) return null; // it wants a WebSocket
    const told = status === 403 ? (await response.text()).trim().slice(0, TEXT_MAX) : "";
    return { status, text: textOf(status, told), isFinal: FINAL_BY_FETCH.includes(status) };
  } catch (error) {
    return ofCode(/** @type {any} */ (error)?.cause); // in Node; a browser hides it
  }
}

/** @param {any} error of Node @returns {Refusal | null} */
function ofCode(error) {
  const code = error?.code;
  if (typeof code !== "string") return null;
  const detail = `${code}: ${String(error.message ?? "").trim().slice(0, TEXT_MAX)}`;
  if (TLS.test(code)) return { status: null, text: `No TLS connection: ${detail}`, isFinal: true };
  if (NO_HTTP.test(code)) return { status: null, text: `The server does not speak HTTP: ${detail}`, isFinal: true };
  return { status: null, text: detail, isFinal: false };
}

/** @param {number} status @param {string} [told] by the server */
function textOf(status, told = "") {
  const hint = told || HINTS[status] || (status < 300 ? "not a WebSocket endpoint" : "");
  return `The handshake was answered with ${status}${hint && `: ${hint}`}`;
}

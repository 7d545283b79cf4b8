/**
 * The JSON encoding of messages, and the interface that every encoding implements.
 *
 * @typedef {object} Codec
 * @property {string} name as in the server's reply to `info`
 * @property {string} subprotocol offered in the handshake
 * @property {(value: unknown) => string | Uint8Array} encode
 * @property {(data: string | ArrayBuffer) => unknown} decode throws if data is not in this encoding
 */

const INTEGER_MIN = -(2 ** 63);
const ROUNDED = "9223372036854776000"; // JSON.stringify(INTEGER_MIN); as an integer it is below -2^63

/** As JSON.stringify, but with the exact digits of -2^63. @param {unknown} value @returns {string} */
function exactly(value) {
  if (value === INTEGER_MIN) return "-9223372036854775808";
  if (Array.isArray(value)) return `[${value.map(exactly).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, member]) => `${JSON.stringify(key)}:${exactly(member)}`).join(",")}}`;
}

/** JSON in text frames; every server supports it. @type {Codec} */
export const json = Object.freeze({
  name: "json",
  subprotocol: "snorky.json",
  encode(/** @type {unknown} */ value) {
    const text = JSON.stringify(value);
    return text.includes(ROUNDED) ? exactly(JSON.parse(text)) : text;
  },
  decode(/** @type {string | ArrayBuffer} */ data) {
    if (typeof data !== "string") throw new TypeError("Binary frame on a JSON connection");
    return /** @type {unknown} */ (JSON.parse(data));
  },
});

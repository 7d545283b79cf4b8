/**
 * How messages become what a WebSocket carries, and back.
 *
 * @typedef {object} Codec
 * @property {string} name as the server calls it in `info`
 * @property {string} subprotocol what the handshake asks for
 * @property {(value: unknown) => string | Uint8Array} encode
 * @property {(data: string | ArrayBuffer) => unknown} decode throws on what is not this encoding
 */

const INTEGER_MIN = -(2 ** 63);
const ROUNDED = "9223372036854776000"; // what JSON.stringify writes of it, and a reader of integers takes for less

/** Write -2^63 digit by digit, all else as JSON.stringify does. @param {unknown} value @returns {string} */
function exactly(value) {
  if (value === INTEGER_MIN) return "-9223372036854775808";
  if (Array.isArray(value)) return `[${value.map(exactly).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, member]) => `${JSON.stringify(key)}:${exactly(member)}`).join(",")}}`;
}

/** Text frames of JSON; every server speaks it. @type {Codec} */
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

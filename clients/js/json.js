/**
 * How messages become what a WebSocket carries, and back.
 *
 * @typedef {object} Codec
 * @property {string} name as the server calls it in `info`
 * @property {string} subprotocol what the handshake asks for
 * @property {(value: unknown) => string | Uint8Array<ArrayBuffer>} encode
 * @property {(data: string | ArrayBuffer) => unknown} decode throws on what is not this encoding
 */

/** Text frames of JSON; every server speaks it. @type {Codec} */
export const json = Object.freeze({
  name: "json",
  subprotocol: "snorky.json",
  encode: (/** @type {unknown} */ value) => JSON.stringify(value),
  decode(/** @type {string | ArrayBuffer} */ data) {
    if (typeof data !== "string") throw new TypeError("Binary frame on a JSON connection");
    return /** @type {unknown} */ (JSON.parse(data));
  },
});

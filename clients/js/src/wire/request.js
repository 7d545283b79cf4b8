/**
 * One request, checked when it is created: parameters that the gateway would not accept throw at once and are not sent.
 *
 * The parameters are copied, so later changes by the application have no effect.
 */

import { SnorkyError } from "../error.js";
import { plain } from "./values.js";

/**
 * @typedef {object} RequestOptions
 * @property {import("./json.js").Codec} codec
 * @property {number} messageMaxBytes
 */

const CALL_ID = "0".repeat(32); // as long as any: 16 hexadecimal digits, a dot and a number of up to 15 digits
const NAME = /^[a-z0-9_-]+$/;
const utf8 = new TextEncoder();

export class Request {
  #codec;
  #envelope;

  /**
   * Throws TypeError or RangeError: the gateway would not accept it; SnorkyError (`too_large`): above messageMaxBytes.
   *
   * @param {string} service @param {string} command @param {object} params @param {RequestOptions} options
   */
  constructor(service, command, params, { codec, messageMaxBytes }) {
    if (typeof service !== "string" || !NAME.test(service)) {
      throw new TypeError("service: a name of lower-case letters, digits, _ and - is expected");
    }
    if (typeof command !== "string") throw new TypeError("command: a string is expected");
    if (typeof params !== "object" || params === null || Array.isArray(params)) {
      throw new TypeError("params: an object is expected");
    }
    this.service = service;
    this.command = command;
    this.#codec = codec;
    /** @type {{service: string, message: {command: string, params: any, callId: string}}} */
    this.#envelope = plain({ service, message: { command, params, callId: CALL_ID } });
    this.sizeBytes = sizeOf(codec.encode(this.#envelope));
    if (this.sizeBytes > messageMaxBytes) {
      throw new SnorkyError(
        `A message of ${this.sizeBytes} bytes, more than messageMaxBytes (${messageMaxBytes}): send less at once; if the ` +
          "gateway's message_max_bytes is higher, pass the same number as messageMaxBytes",
        "too_large",
      );
    }
  }

  /** Encode the message to send. @param {string} callId ASCII, at most 32 characters */
  encode(callId) {
    this.#envelope.message.callId = callId;
    return this.#codec.encode(this.#envelope);
  }
}

/** @param {string | Uint8Array} data */
function sizeOf(data) {
  return typeof data === "string" ? utf8.encode(data).length : data.length;
}

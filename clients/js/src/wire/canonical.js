/**
 * The canonical form of channels (RFC 8785). Two channels are the same if their canonical forms are equal.
 *
 * RFC 8785 writes numbers and strings as ECMAScript does, so JSON.stringify produces both.
 * The server and every client library are tested with tests/vectors/canonical.json and redis_names.json.
 */

const CHANNEL_MAX_BYTES = 255; // of UTF-8, in canonical form (PROTOCOL)
const MAX_DEPTH = 32;
// With the u flag a proper pair is one code point: this finds lone halves only.
const LONE_SURROGATE = /\p{Surrogate}/u;
const utf8 = new TextEncoder();

/**
 * The canonical JSON text of a value: object keys in UTF-16 order, shortest numbers, no spaces.
 *
 * Throws TypeError for values that are not JSON (NaN, undefined, functions, lone surrogates), are nested deeper than
 * 32, or have integers beyond +-(2^53 - 1), which some languages cannot distinguish.
 *
 * @param {unknown} value
 * @returns {string}
 */
export function canonical(value) {
  return canonicalValue(value, 0);
}

/**
 * The name of a channel in Redis: a string unchanged; anything else as `~` and its canonical form; a string that
 * starts with `~` as `~` and its JSON form. So two different channels never have the same name.
 *
 * Throws TypeError as `canonical`, and for more than 255 bytes in canonical form.
 *
 * @param {unknown} channel
 */
export function channelName(channel) {
  const form = canonical(channel);
  // A UTF-16 unit is at most 3 bytes in UTF-8, so short forms (nearly all) need not be encoded to count.
  if (form.length * 3 > CHANNEL_MAX_BYTES && utf8.encode(form).length > CHANNEL_MAX_BYTES) {
    throw new TypeError(`A channel is at most ${CHANNEL_MAX_BYTES} bytes in canonical form`);
  }
  return typeof channel === "string" && !channel.startsWith("~") ? channel : `~${form}`;
}

/** @param {unknown} value @param {number} depth @returns {string} */
function canonicalValue(value, depth) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return canonicalString(value);
  if (typeof value === "number") return canonicalNumber(value);
  if (typeof value !== "object") throw new TypeError(`A ${typeof value} has no canonical form`);
  if (depth === MAX_DEPTH) throw new TypeError(`Nested deeper than ${MAX_DEPTH}: no canonical form`);
  if (Array.isArray(value)) return `[${value.map((item) => canonicalValue(item, depth + 1)).join(",")}]`;
  const members = /** @type {Record<string, unknown>} */ (value);
  // Array.prototype.sort without arguments compares UTF-16 code units, as RFC 8785 3.2.3 asks.
  const keys = Object.keys(members).sort();
  return `{${keys.map((key) => `${canonicalString(key)}:${canonicalValue(members[key], depth + 1)}`).join(",")}}`;
}

/** @param {string} text */
function canonicalString(text) {
  if (LONE_SURROGATE.test(text)) throw new TypeError("A lone surrogate has no canonical form");
  return JSON.stringify(text);
}

/** @param {number} number */
function canonicalNumber(number) {
  // From 1e21 on ECMAScript writes an exponent, which every parser reads as a double.
  const isUnsafe = Number.isInteger(number) && !Number.isSafeInteger(number) && Math.abs(number) < 1e21;
  if (!Number.isFinite(number) || isUnsafe) throw new TypeError(`${number} has no canonical form`);
  return JSON.stringify(number);
}

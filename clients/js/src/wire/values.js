/**
 * Check a value that is to be sent and copy it, so that later changes by the application have no effect.
 *
 * The rules are the gateway's, so that only acceptable messages are sent: UTF-8 without lone surrogates, finite numbers,
 * integers from -2^63 to 2^64-1, arrays and objects nested at most 32 deep, at most 10,000 values. Values that
 * JSON.stringify would change silently (NaN, undefined in an array, a function, a Map) are rejected too.
 */

const DEPTH_MAX = 32;
const VALUES_MAX = 10_000; // arrays and objects count, keys do not
const INTEGER_MIN = -(2 ** 63);
const INTEGER_END = 2 ** 64;
const EXPONENT_FROM = 1e21; // from here on JSON.stringify writes an exponent, and every parser reads a double
// With the u flag a proper pair is one code point: this finds lone halves only.
const LONE_SURROGATE = /\p{Surrogate}/u;

/**
 * Copy a value as JSON.stringify would write it: `toJSON` is called, undefined members are omitted.
 *
 * Throws TypeError: not JSON (undefined, functions, BigInt, Map and the like, lone surrogates); RangeError: a number,
 * the depth or the number of values is out of range.
 *
 * @param {unknown} value
 * @returns {any}
 */
export function plain(value) {
  return new Copy().of(value, "", 0);
}

class Copy {
  #seen = 0;

  /** @param {unknown} given @param {string} key @param {number} depth @returns {unknown} */
  of(given, key, depth) {
    this.#count(1);
    const value = reduced(given, key);
    if (value === null || typeof value === "boolean") return value;
    if (typeof value === "string") return wellFormed(value);
    if (typeof value === "number") return inRange(value);
    if (typeof value === "bigint") throw new TypeError("A BigInt is no JSON: send it as a string");
    if (typeof value !== "object") throw new TypeError(`${typeof value} is no JSON value`);
    if (depth === DEPTH_MAX) throw new RangeError(`More than ${DEPTH_MAX} arrays and objects inside of each other`);
    if (Array.isArray(value)) return this.#array(value, depth + 1);
    const kind = Object.prototype.toString.call(value).slice(8, -1);
    if (kind !== "Object") throw new TypeError(`${kind} is no JSON value: send an object or array made of it`);
    return this.#object(/** @type {Record<string, unknown>} */ (value), depth + 1);
  }

  /** @param {unknown[]} items @param {number} depth */
  #array(items, depth) {
    this.#count(items.length); // before iterating: the array may be sparse and huge
    this.#seen -= items.length;
    return Array.from(items, (item, index) => this.of(item, String(index), depth));
  }

  /** @param {Record<string, unknown>} members @param {number} depth */
  #object(members, depth) {
    /** @type {[string, unknown][]} */
    const pairs = [];
    for (const key of Object.keys(members)) {
      const value = members[key];
      if (value !== undefined) pairs.push([wellFormed(key), this.of(value, key, depth)]);
    }
    return Object.fromEntries(pairs); // creates an own property for __proto__ too
  }

  /** @param {number} values */
  #count(values) {
    this.#seen += values;
    if (this.#seen > VALUES_MAX) throw new RangeError(`More than ${VALUES_MAX} values in a message`);
  }
}

/** Apply `toJSON` and unwrap Number, String and Boolean objects. @param {unknown} value @param {string} key */
function reduced(value, key) {
  if (value instanceof Date && Number.isNaN(value.getTime())) throw new RangeError("An invalid date");
  const toJSON = /** @type {{toJSON?: unknown} | null | undefined} */ (value)?.toJSON;
  if (typeof toJSON === "function") value = toJSON.call(value, key);
  return value instanceof Number || value instanceof String || value instanceof Boolean ? value.valueOf() : value;
}

/** @param {string} text */
function wellFormed(text) {
  if (LONE_SURROGATE.test(text)) throw new TypeError("A string with a lone surrogate: half of a character was cut off");
  return text;
}

/** @param {number} number */
function inRange(number) {
  if (!Number.isFinite(number)) throw new RangeError(`${number} is no JSON number`);
  const isBeyond = number < INTEGER_MIN || number >= INTEGER_END;
  if (isBeyond && Number.isInteger(number) && Math.abs(number) < EXPONENT_FROM) {
    throw new RangeError(`${number} is an integer beyond 64 bits: send it as a string`);
  }
  return number;
}

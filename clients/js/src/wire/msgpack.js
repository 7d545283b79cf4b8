/**
 * MessagePack, limited to the types of JSON: nil, booleans, numbers, strings, arrays, maps with string keys.
 *
 * `encode` treats values as JSON.stringify does (undefined members are omitted, NaN becomes nil, toJSON is called), so
 * an application sends the same message in either encoding. Integers that fit into 64 bits are MessagePack integers,
 * other numbers 64-bit floats. `decode` reads 64-bit integers into a Number, as JSON.parse does. It throws TypeError for
 * binary and extension types, keys that are not strings, and bytes after the value.
 */

const MAX_DEPTH = 64; // the server allows 32; this only prevents a stack overflow
const LONE_SURROGATE = /\p{Surrogate}/u;
const utf8Encoder = new TextEncoder();
const utf8Decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** @param {unknown} value @returns {Uint8Array} */
export function encode(value) {
  const writer = new Writer();
  writer.value(plain(value, ""), 0);
  return writer.taken();
}

/** @param {ArrayBuffer | Uint8Array} data one whole MessagePack value @returns {unknown} */
export function decode(data) {
  const reader = new Reader(data instanceof Uint8Array ? data : new Uint8Array(data));
  const value = reader.value(0);
  if (!reader.isAtEnd) throw new TypeError("Bytes after the MessagePack value");
  return value;
}

/** The codec for `connect(url, {encoding: msgpack})`. @type {import("./json.js").Codec} */
export const msgpack = Object.freeze({
  name: "msgpack",
  subprotocol: "snorky.msgpack",
  encode,
  decode(/** @type {string | ArrayBuffer} */ data) {
    if (typeof data === "string") throw new TypeError("Text frame on a MessagePack connection");
    return decode(data);
  },
});

/**
 * The value that JSON.stringify would write; undefined if it would omit it.
 *
 * @param {unknown} value @param {string} key
 */
function plain(value, key) {
  const asked = /** @type {{toJSON?: unknown} | null | undefined} */ (value)?.toJSON;
  if (typeof asked === "function") value = asked.call(value, key);
  if (value instanceof Number || value instanceof String || value instanceof Boolean) value = value.valueOf();
  return typeof value === "function" || typeof value === "symbol" ? undefined : value;
}

class Writer {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  taken() {
    return this.#bytes.slice(0, this.#length);
  }

  /** @param {unknown} value already plain @param {number} depth */
  value(value, depth) {
    if (depth > MAX_DEPTH) throw new TypeError("Too deep for MessagePack");
    if (value === null || value === undefined) this.#byte(0xc0);
    else if (typeof value === "boolean") this.#byte(value ? 0xc3 : 0xc2);
    else if (typeof value === "number") this.#number(value);
    else if (typeof value === "string") this.#string(value);
    else if (Array.isArray(value)) this.#array(value, depth);
    else if (typeof value === "object") this.#map(/** @type {Record<string, unknown>} */ (value), depth);
    else throw new TypeError(`A ${typeof value} cannot be a message`);
  }

  /** @param {number} number */
  #number(number) {
    if (!Number.isFinite(number)) this.#byte(0xc0);
    else if (!Number.isInteger(number) || number < -(2 ** 63) || number >= 2 ** 64) {
      this.#put(0xcb, 8, (view, at) => view.setFloat64(at, number));
    }
    else if (number >= 0) this.#natural(number);
    else if (number >= -0x20) this.#byte(0x100 + number);
    else if (number >= -0x80) this.#put(0xd0, 1, (view, at) => view.setInt8(at, number));
    else if (number >= -0x8000) this.#put(0xd1, 2, (view, at) => view.setInt16(at, number));
    else if (number >= -0x80000000) this.#put(0xd2, 4, (view, at) => view.setInt32(at, number));
    else this.#put(0xd3, 8, (view, at) => view.setBigInt64(at, BigInt(number)));
  }

  /** @param {number} number */
  #natural(number) {
    if (number < 0x80) this.#byte(number);
    else if (number < 0x100) this.#put(0xcc, 1, (view, at) => view.setUint8(at, number));
    else if (number < 0x10000) this.#put(0xcd, 2, (view, at) => view.setUint16(at, number));
    else if (number < 0x100000000) this.#put(0xce, 4, (view, at) => view.setUint32(at, number));
    else this.#put(0xcf, 8, (view, at) => view.setBigUint64(at, BigInt(number)));
  }

  /** @param {string} text */
  #string(text) {
    if (LONE_SURROGATE.test(text)) throw new TypeError("A lone surrogate cannot be sent");
    const bytes = utf8Encoder.encode(text);
    if (bytes.length < 32) this.#byte(0xa0 | bytes.length);
    else if (bytes.length < 0x100) this.#put(0xd9, 1, (view, at) => view.setUint8(at, bytes.length));
    else this.#size(bytes.length, 0xda);
    this.#reserve(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** @param {unknown[]} items @param {number} depth */
  #array(items, depth) {
    if (items.length < 16) this.#byte(0x90 | items.length);
    else this.#size(items.length, 0xdc);
    for (let index = 0; index < items.length; index++) this.value(plain(items[index], String(index)), depth + 1);
  }

  /** @param {Record<string, unknown>} members @param {number} depth */
  #map(members, depth) {
    /** @type {[string, unknown][]} */
    const pairs = [];
    for (const key of Object.keys(members)) {
      const value = plain(members[key], key);
      if (value !== undefined) pairs.push([key, value]);
    }
    if (pairs.length < 16) this.#byte(0x80 | pairs.length);
    else this.#size(pairs.length, 0xde);
    for (const [key, value] of pairs) {
      this.#string(key);
      this.value(value, depth + 1);
    }
  }

  /** Write `tag` and a 16-bit length, or `tag + 1` and a 32-bit one. @param {number} size @param {number} tag */
  #size(size, tag) {
    if (size < 0x10000) this.#put(tag, 2, (view, at) => view.setUint16(at, size));
    else this.#put(tag + 1, 4, (view, at) => view.setUint32(at, size));
  }

  /** @param {number} byte */
  #byte(byte) {
    this.#reserve(1);
    this.#bytes[this.#length++] = byte;
  }

  /** @param {number} tag @param {number} size @param {(view: DataView, at: number) => void} write */
  #put(tag, size, write) {
    this.#byte(tag);
    this.#reserve(size);
    write(this.#view, this.#length);
    this.#length += size;
  }

  /** @param {number} size */
  #reserve(size) {
    if (this.#length + size <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + size));
    larger.set(this.#bytes);
    this.#bytes = larger;
    this.#view = new DataView(larger.buffer);
  }
}

class Reader {
  #bytes;
  #view;
  #at = 0;

  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get isAtEnd() {
    return this.#at === this.#bytes.length;
  }

  /** @param {number} depth @returns {unknown} */
  value(depth) {
    if (depth > MAX_DEPTH) throw new TypeError("MessagePack is too deep");
    const tag = this.#view.getUint8(this.#take(1));
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.#map(tag & 0x0f, depth);
    if (tag < 0xa0) return this.#array(tag & 0x0f, depth);
    if (tag < 0xc0) return this.#string(tag & 0x1f);
    if (tag >= 0xe0) return tag - 0x100;
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xca: return this.#view.getFloat32(this.#take(4));
      case 0xcb: return this.#view.getFloat64(this.#take(8));
      case 0xcc: return this.#view.getUint8(this.#take(1));
      case 0xcd: return this.#view.getUint16(this.#take(2));
      case 0xce: return this.#view.getUint32(this.#take(4));
      case 0xcf: return Number(this.#view.getBigUint64(this.#take(8)));
      case 0xd0: return this.#view.getInt8(this.#take(1));
      case 0xd1: return this.#view.getInt16(this.#take(2));
      case 0xd2: return this.#view.getInt32(this.#take(4));
      case 0xd3: return Number(this.#view.getBigInt64(this.#take(8)));
      case 0xd9: return this.#string(this.#view.getUint8(this.#take(1)));
      case 0xda: return this.#string(this.#view.getUint16(this.#take(2)));
      case 0xdb: return this.#string(this.#view.getUint32(this.#take(4)));
      case 0xdc: return this.#array(this.#view.getUint16(this.#take(2)), depth);
      case 0xdd: return this.#array(this.#view.getUint32(this.#take(4)), depth);
      case 0xde: return this.#map(this.#view.getUint16(this.#take(2)), depth);
      case 0xdf: return this.#map(this.#view.getUint32(this.#take(4)), depth);
      default: throw new TypeError(`MessagePack type 0x${tag.toString(16)} is not in use here`);
    }
  }

  /** @param {number} size bytes */
  #string(size) {
    const start = this.#take(size);
    return utf8Decoder.decode(this.#bytes.subarray(start, start + size));
  }

  /** @param {number} size items @param {number} depth */
  #array(size, depth) {
    const items = []; // not allocated by the header's size, which may be false
    for (let index = 0; index < size; index++) items.push(this.value(depth + 1));
    return items;
  }

  /** @param {number} size pairs @param {number} depth */
  #map(size, depth) {
    /** @type {Record<string, unknown>} */
    const members = {};
    for (let index = 0; index < size; index++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") throw new TypeError("A MessagePack key is not a string");
      const value = this.value(depth + 1);
      // Assigning to __proto__ would change the prototype; JSON.parse makes an own property of it, and so do we.
      if (key === "__proto__") Object.defineProperty(members, key, { value, enumerable: true, configurable: true, writable: true });
      else members[key] = value;
    }
    return members;
  }

  /** Skip `size` bytes; returns the index of the first. @param {number} size */
  #take(size) {
    const start = this.#at;
    if (start + size > this.#bytes.length) throw new TypeError("MessagePack ends too early");
    this.#at = start + size;
    return start;
  }
}

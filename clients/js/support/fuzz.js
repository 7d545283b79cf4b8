// Sends values of all kinds to a real node: each arrives equal or is rejected at the call, all on one connection.
//
//   node fuzz.js URL COUNT SEED ENCODING
//   out  one line: {"arrived", "refused", "opens", "sameConnection", "faults": [what went wrong]}

import { isDeepStrictEqual } from "node:util";

import { WebSocket } from "ws";

import { SnorkyError, connect, json, msgpack } from "../src/snorky.js";

const [url = "", count = "2000", seed = "7", encoding = "json"] = process.argv.slice(2);
const AT_ONCE_MS = 5_000; // a jam would last publishMaxAgeMs (60 s), or callTimeoutMs (10 s) at least

const TEXTS = [
  "", "nice 😀", "nice \ud83d", "\udc00", "\0", "\u2028", "é".repeat(100), '"\\', "x".repeat(65_000), "é".repeat(33_000), "~a", "NaN",
];
const NUMBERS = [
  0, -1, 2 ** 53, 2 ** 53 + 2, 2 ** 63, 2 ** 64 - 2_048, 2 ** 64, -(2 ** 63), -(2 ** 63) - 2_048, 9e20, 1e21, 1e22, -0, 5e-324,
  1.7e308, 0.1, 1e16, -1e19,
];
const ODD = () => [
  NaN, Infinity, -Infinity, 1n, 2n ** 64n, new Uint8Array(3), new ArrayBuffer(2), new Set([1]), new Map([[1, 2]]), Symbol("s"),
  () => 0, /x/, new Error("e"), new WeakMap(), Promise.resolve(1), new Date(NaN), undefined, endless(), Object.create({ toJSON: () => NaN }),
];
const FINE = () => [true, false, null, new Date(0), Object(1), Object("t"), Object.create(null), new (class { x = 1; })(), { toJSON: () => "t" }];
const KEYS = ["a\ud800", "__proto__", "toString", "", "1", "é"];

/** The same numbers for the same seed (mulberry32). @param {number} state */
function randomBy(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
const random = randomBy(Number(seed));
const below = (/** @type {number} */ end) => Math.floor(random() * end);
const one = (/** @type {any[]} */ all) => all[below(all.length)];

function endless() {
  /** @type {any} */
  const value = {};
  value.again = [value];
  return value;
}

/** @param {number} depth @param {unknown} value */
function nested(depth, value) {
  for (let level = 0; level < depth; level++) value = level % 2 ? [value] : { k: value };
  return value;
}

/** Draw a random value: most are valid, and every kind of invalid one occurs. @param {number} [depth] @returns {any} */
function draw(depth = 0) {
  const kind = random();
  if (kind < 0.3 && depth < 4) return Array.from({ length: below(4) }, () => draw(depth + 1));
  if (kind < 0.55 && depth < 4) {
    const pairs = Array.from({ length: below(4) }, (_, number) => [`k${number}`, draw(depth + 1)]);
    if (random() < 0.1) pairs.push([one(KEYS), 1]);
    return Object.fromEntries(pairs);
  }
  if (kind < 0.7) return one(NUMBERS);
  if (kind < 0.85) return one(TEXTS);
  if (kind < 0.89) return one(ODD());
  if (kind < 0.91) return nested(one([26, 27, 28, 29, 30, 31, 32, 33, 2_000]), one(NUMBERS));
  if (kind < 0.92) return Array(one([9_980, 9_991, 9_992, 9_993, 9_999, 10_000, 10_001, 20_000])).fill(0);
  return one(FINE());
}

/** @type {string[]} */
const faults = [];
const client = connect(url, { WebSocket, encoding: encoding === "msgpack" ? msgpack : json });
let opens = 0;
client.on("open", () => (opens += 1));
client.on("error", ({ error }) => faults.push(`${error.code}: ${error.message}`));
client.on("close", ({ code }) => faults.push(`closed with ${code}`));
/** @type {any[]} */
const heard = [];
let onHeard = () => {};
await client.subscribe("fuzz", (message) => {
  heard.push(message);
  onHeard();
}).ready;
const before = await client.call("gateway", "info");

/** @param {any} value @param {number} number */
async function attempt(value, number) {
  /** @type {"waits" | "taken" | "refused"} */
  let state = "waits";
  // JSON omits an undefined parameter, so `call` cannot reject it; `publish` does.
  const sending = number % 2 || value === undefined
    ? client.publish("fuzz", value) : client.call("pubsub", "publish", { channel: "fuzz", message: value });
  const taken = sending.then(
    () => (state = "taken"),
    (error) => {
      if (state === "waits" && !isLate && isRefusal(error)) return (state = "refused");
      throw error;
    },
  );
  let isLate = false;
  await Promise.race([taken, new Promise((resolve) => setImmediate(resolve))]); // a refusal needs no network
  isLate = true;
  if (/** @type {string} */ (state) === "refused") return "refused";
  await taken;
  if (heard.length === 0) await new Promise((resolve) => (onHeard = () => resolve(null)));
  // JSON.stringify defines a value's meaning as a message.
  const [text, meant] = [JSON.stringify(heard.shift()), JSON.stringify(value)];
  if (!isDeepStrictEqual(JSON.parse(text), JSON.parse(meant))) throw new Error(`${meant.slice(0, 80)} came as ${text.slice(0, 80)}`);
  return "arrived";
}

/** @param {unknown} error */
function isRefusal(error) {
  return error instanceof TypeError || error instanceof RangeError || (error instanceof SnorkyError && error.code === "too_large");
}

const outcomes = { arrived: 0, refused: 0 };
for (let number = 0; number < Number(count) && faults.length === 0; number++) {
  const value = draw();
  /** @type {any} */
  let timer;
  const inTime = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("a jam")), AT_ONCE_MS)));
  try {
    outcomes[await Promise.race([attempt(value, number), inTime])] += 1;
  } catch (error) {
    faults.push(`value ${number}: ${error}`);
  }
  clearTimeout(timer);
}
const after = await client.call("gateway", "info").catch(() => ({}));
process.stdout.write(`${JSON.stringify({ ...outcomes, opens, sameConnection: after.connection === before.connection, faults })}\n`);
client.close();

/**
 * Clients under random faults. Checked: on each channel every message arrives once and in order, or a gap is reported
 * in its place; every publication settles with its outcome. `SEEDS=1000 npm test` tries more seeds, `SEED=7` one seed.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../src/snorky.js";
import { FakeServer } from "../support/fake_server.js";
import { FakeClock, settled } from "../support/fakes.js";
import { unknown } from "../support/start.js";

const seeds = process.env.SEED !== undefined
  ? [Number(process.env.SEED)]
  : [...Array.from({ length: Number(process.env.SEEDS ?? 40) }, (_, seed) => seed + 1), 195, 744]; // seeds that found faults
const CHANNELS = ["one", "two", "three"];
const STEPS = 400;
const noFaults = { dropped: 0, doubled: 0, lateAnswer: 0, noAnswer: 0, unavailable: 0, refused: 0 };
const someFaults = { dropped: 0.01, doubled: 0.02, lateAnswer: 0.1, noAnswer: 0.02, unavailable: 0.03, refused: 0.1 };

/** Numbers in [0, 1) that depend on the seed alone (mulberry32). @param {number} seed */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The messages of a channel that a client received: numbers, in the order of publication. */
class Journal {
  /** @type {(number | "gap")[]} */
  entries = [];

  /** @param {any[]} log the published messages @param {string} what */
  judge(log, what) {
    let last = -1;
    let mayMiss = true; // nothing is guaranteed before the first subscription
    for (const entry of this.entries) {
      if (entry === "gap") {
        mayMiss = true;
        continue;
      }
      const at = log.indexOf(entry);
      assert.ok(at > last, `${what}: ${entry} came twice or too late`);
      assert.ok(at === last + 1 || mayMiss, `${what}: silent hole before ${entry}`);
      last = at;
      mayMiss = false;
    }
    assert.equal(last, log.length - 1, `${what}: the last messages are missing`);
  }

  get gaps() {
    return this.entries.filter((entry) => entry === "gap").length;
  }
}

/**
 * A function that gives tokens for random times; sometimes it fails, never answers, or gives an expired one.
 *
 * @param {FakeClock} clock @param {() => number} random @param {FakeServer} server
 */
function tokens(clock, random, server) {
  return async () => {
    const isFaulty = server.faults !== noFaults;
    const chance = isFaulty ? random() : 1;
    if (chance < 0.1) throw new Error("The backend is down");
    if (chance < 0.15) return new Promise(() => {});
    if (chance < 0.2) return `exp.${clock.now()}`;
    if (chance < 0.5) await new Promise((resolve) => clock.after(random() ** 3 * 1_000, () => resolve(null)));
    return `exp.${clock.now() + 100 + random() * 8_000}`;
  };
}

/** @param {number} seed @param {boolean} [hasTokens] */
async function run(seed, hasTokens = false) {
  const random = generator(seed);
  const clock = new FakeClock();
  const server = new FakeServer({ clock, random, faults: noFaults });
  const client = connect("wss://example.org/ws", {
    fetch: unknown,
    WebSocket: server.WebSocket, clock, random, callTimeoutMs: 2_000, publishMaxAgeMs: 30_000, probeAfterMs: 5_000,
    probeTimeoutMs: 2_000, backoffMaxMs: 4_000, ...(seed % 3 === 0 ? {} : { token: "ann" }),
  });
  client.on("error", () => {});
  const journals = CHANNELS.map((channel) => {
    const journal = new Journal();
    const token = hasTokens && channel !== "one" ? tokens(clock, random, server) : undefined;
    const subscription = client.subscribe(channel, (message) => journal.entries.push(message), { recover: true, token });
    subscription.on("unsubscribed", ({ code }) => assert.fail(`ended: ${code}`));
    subscription.on("gap", () => journal.entries.push("gap"));
    return { channel, journal, subscription };
  });
  await clock.pass(1_000);
  await Promise.all(journals.map(({ subscription }) => subscription.ready));
  const isPuttingOff = seed % 2 === 0; // postponed publications may follow later ones that were in flight
  server.faults = isPuttingOff ? someFaults : { ...someFaults, unavailable: 0 };

  let count = 0;
  /** @type {Map<number, string>} by message: "done", or the code that it was rejected with */
  const outcomes = new Map();
  for (let step = 0; step < STEPS; step++) {
    const channel = CHANNELS[Math.floor(random() * CHANNELS.length)] ?? "one";
    const number = ++count;
    const chance = random();
    if (chance < 0.5) server.publish(channel, number);
    else client.publish(channel, number).then(() => outcomes.set(number, "done"), ({ code }) => outcomes.set(number, code));
    if (chance < 0.02) server.cut();
    else if (chance < 0.03) server.forget(channel);
    else if (chance < 0.04) server.drain(2_000);
    await clock.pass(random() ** 3 * 400);
  }
  server.faults = noFaults;
  await clock.pass(60_000); // every publication has settled
  for (const channel of CHANNELS) server.publish(channel, ++count); // reveals messages missing at the end
  await clock.pass(10_000);
  client.close();
  if (hasTokens) await clock.pass(100); // messages about tokens may have been in flight
  await settled();
  return { server, journals, outcomes, clock, client, isPuttingOff };
}

for (const hasTokens of [false, true]) {
  const also = hasTokens ? ", also if subscriptions expire" : "";
  test(`under random faults no message is lost silently, duplicated or out of order${also}`, (context) => judge(context, hasTokens));
}

/** @param {import("node:test").TestContext} context @param {boolean} hasTokens */
async function judge(context, hasTokens) {
  let [messages, gaps, publications, unknown] = [0, 0, 0, 0];
  for (const seed of seeds) {
    const { server, journals, outcomes, clock, client, isPuttingOff } = await run(seed, hasTokens);
    for (const { channel, journal } of journals) {
      journal.judge(server.log(channel), `seed ${seed}, ${channel}`);
      messages += journal.entries.length;
      gaps += journal.gaps;
    }
    const published = CHANNELS.flatMap((channel) => server.log(channel));
    for (const [number, outcome] of outcomes) {
      const times = published.filter((message) => message === number).length;
      if (outcome === "done") assert.equal(times, 1, `seed ${seed}: ${number} was said to be published`);
      else if (outcome === "offline") assert.equal(times, 0, `seed ${seed}: ${number} was said to be never sent`);
      else assert.ok(times <= 1, `seed ${seed}: ${number} was published ${times} times`);
      if (outcome !== "done" && outcome !== "offline") unknown += 1;
    }
    for (const channel of isPuttingOff ? [] : CHANNELS) {
      const ours = server.log(channel).filter((number) => outcomes.get(number) === "done");
      assert.deepEqual(ours, ours.toSorted((a, b) => a - b), `seed ${seed}, ${channel}: published out of order`);
    }
    publications += outcomes.size;
    assert.equal(client.queued, 0, `seed ${seed}: publications without an outcome`);
    assert.equal(clock.timers, 0, `seed ${seed}: timers are left`);
  }
  context.diagnostic(`${seeds.length} seeds: ${messages} messages heard, ${gaps} gaps told; ${publications} publications, ` +
    `${unknown} of unknown outcome`);
}

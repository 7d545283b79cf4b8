import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff } from "../src/session/backoff.js";

test("delays are spread over the whole range, from zero to a doubling ceiling", () => {
  for (const share of [0, 0.25, 0.999]) {
    const backoff = new Backoff({ baseMs: 100, maxMs: 1_000, random: () => share });
    const delays = Array.from({ length: 6 }, () => backoff.next());
    assert.deepEqual(delays, [100, 200, 400, 800, 1_000, 1_000].map((ceilingMs) => share * ceilingMs));
  }
});

test("a delay never exceeds the maximum, after any number of failures", () => {
  const backoff = new Backoff({ baseMs: 500, maxMs: 20_000 });
  for (let failure = 0; failure < 2_000; failure++) {
    const delayMs = backoff.next();
    assert.ok(delayMs >= 0 && delayMs < 20_000, `${delayMs}`);
  }
});

test("after a reset the delay starts again at the base", () => {
  const backoff = new Backoff({ baseMs: 100, maxMs: 1_000, random: () => 0.5 });
  backoff.next();
  backoff.next();
  backoff.reset();
  assert.equal(backoff.failures, 0);
  assert.equal(backoff.next(), 50);
});

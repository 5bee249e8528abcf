import assert from 'node:assert/strict';
import { test } from 'node:test';

import { JitterBuffer, RATE } from '../../../src/personaplex/server/page/static/jitter.js';

const ms = (n) => (n * RATE) / 1000;
const tone = (n, from = 0) => Float32Array.from({ length: n }, (_, i) => 0.5 * Math.sin((from + i) / 7));

function pull(buffer, n) {
  const out = new Float32Array(n);
  for (let at = 0; at < n; at += 128) buffer.pull(out.subarray(at, Math.min(n, at + 128)));
  return out;
}

test('it waits until its target is there, then plays every sample once, in order', () => {
  const buffer = new JitterBuffer({ start: 80 });
  const sound = tone(ms(400));
  buffer.push(sound.subarray(0, ms(60)));
  assert.deepEqual(pull(buffer, ms(19)), new Float32Array(ms(19)));
  assert.equal(buffer.cursor, 0);
  buffer.push(sound.subarray(ms(60)));
  const heard = pull(buffer, ms(400));
  assert.deepEqual(heard.subarray(120), sound.subarray(120)); // the first 5 ms fade in
  assert.ok(Math.abs(heard[0]) <= Math.abs(sound[0]));
  assert.equal(buffer.cursor, ms(400));
  assert.equal(buffer.underruns, 0);
});

test('running dry is one underrun, fades, and makes it wait for more the next time', () => {
  const buffer = new JitterBuffer({ start: 80, step: 20, ceiling: 110 });
  buffer.push(tone(ms(80)));
  const heard = pull(buffer, ms(200));
  assert.equal(buffer.underruns, 1);
  assert.equal(buffer.target, ms(100));
  const steps = heard.subarray(1).map((x, i) => Math.abs(x - heard[i]));
  assert.ok(Math.max(...steps) < 0.1, 'no click');
  assert.equal(heard.at(-1), 0);
  buffer.push(tone(ms(60)));
  assert.deepEqual(pull(buffer, ms(40)), new Float32Array(ms(40)), '60 ms are there; 40 are waited for');
  pull(buffer, ms(300));
  assert.equal(buffer.underruns, 2);
  assert.equal(buffer.target, ms(110), 'never above the ceiling');
});

test('an end is no underrun, and what is less than the target is still played', () => {
  const buffer = new JitterBuffer({ start: 80 });
  buffer.push(tone(ms(30)));
  buffer.flush();
  const heard = pull(buffer, ms(60));
  assert.equal(buffer.cursor, ms(30));
  assert.ok(heard.some((x) => Math.abs(x) > 0.4));
  assert.equal(buffer.underruns, 0);
  buffer.push(tone(ms(90)));
  pull(buffer, ms(120));
  assert.equal(buffer.underruns, 1, 'after more sound, running dry counts again');
});

test('of a burst, quiet is left out before speech is', () => {
  const buffer = new JitterBuffer({ start: 80, slack: 80 });
  buffer.push(tone(ms(80)));
  pull(buffer, ms(40));
  buffer.push(new Float32Array(ms(600)));
  buffer.push(tone(ms(80)));
  pull(buffer, ms(60));
  assert.ok(buffer.skipped >= ms(400), `left out ${buffer.skipped}`);
  assert.equal(buffer.dropped, 0);
  assert.ok(buffer.waiting <= 170);
  const heard = pull(buffer, ms(100) + buffer.size);
  assert.ok(Math.max(...heard) > 0.49, 'the words after it are heard');
});

test('a burst of speech is kept up to the most, and cut beyond: what waits is bounded', () => {
  const buffer = new JitterBuffer({ start: 80, most: 1000 });
  buffer.push(tone(ms(1000)));
  assert.equal(buffer.dropped, 0);
  buffer.push(tone(ms(5000)));
  assert.ok(buffer.waiting <= 1000);
  assert.ok(buffer.dropped >= ms(5000));
  assert.equal(buffer.dropped + buffer.size, ms(6000), 'every sample is accounted for');
  const heard = pull(buffer, ms(100));
  assert.ok(heard.every(Number.isFinite));
});

test('what was taken back is not heard, and the cursor passes over it', () => {
  const buffer = new JitterBuffer({ start: 80 });
  buffer.push(tone(ms(200)));
  pull(buffer, ms(100));
  buffer.clear();
  assert.equal(buffer.cursor, ms(200));
  const heard = pull(buffer, ms(100));
  assert.ok(heard.subarray(ms(10)).every((x) => Math.abs(x) < 0.01));
  assert.equal(buffer.underruns, 0);
});

test('long calm lets the wait shrink again, not below where it began', () => {
  const buffer = new JitterBuffer({ start: 80, step: 20, calm: 1000 });
  buffer.push(tone(ms(80)));
  pull(buffer, ms(100));
  assert.equal(buffer.target, ms(100));
  for (let i = 0; i < 50; i++) {
    buffer.push(tone(ms(100)));
    pull(buffer, ms(100));
  }
  assert.equal(buffer.target, ms(80));
});

test('jitter within the target is not heard at all', () => {
  const buffer = new JitterBuffer({ start: 160 });
  const late = [0, 30, 55, 10, 70, 0, 40, 65, 5, 75]; // milliseconds that packet i comes too late
  let clock = 0;
  let next = 0;
  const sound = tone(ms(80) * 100);
  const heard = [];
  for (; clock < 8200; clock += 5) {
    while (next < 100 && next * 80 + late[next % 10] <= clock) {
      buffer.push(sound.subarray(next * ms(80), (next + 1) * ms(80)));
      next++;
    }
    heard.push(...pull(buffer, ms(5)));
  }
  assert.equal(buffer.underruns, 1, 'only the end');
  const begins = heard.findIndex((x) => x !== 0);
  assert.ok(begins >= ms(70) && begins <= ms(90), 'a packet of 80 ms waits for 80 more');
  assert.equal(buffer.cursor, ms(8000));
});

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Latency } from '../../../src/personaplex/server/page/static/latency.js';
import { Turns } from '../../../src/personaplex/server/page/static/turns.js';

const LOUD = 0.1;

function run(turns, blocks, user, agent = 0) {
  const seen = [];
  for (let i = 0; i < blocks; i++) {
    const { changed, over } = turns.push(user, agent);
    if (changed) seen.push(`${turns.state}@${i}${over ? ' over' : ''}`);
  }
  return seen;
}

test('tap, talk, silence ends it, the answer is heard, and it listens again', () => {
  const turns = new Turns({ block: 40, silence: 1000, quiet: 400, steps: 1000 });
  assert.equal(turns.runs, false);
  turns.tap();
  assert.deepEqual(run(turns, 500, 0), [], 'silence before the first word ends nothing');
  assert.deepEqual(run(turns, 50, LOUD), []);
  assert.deepEqual(run(turns, 24, 0), [], 'a pause shorter than a second ends nothing');
  run(turns, 1, LOUD);
  assert.deepEqual(run(turns, 25, 0), ['answering@24']);
  assert.equal(turns.hears, false);
  assert.deepEqual(run(turns, 50, LOUD, LOUD), [], 'the user is not heard now');
  assert.deepEqual(run(turns, 10, 0, 0), ['listening@9 over']);
  assert.equal(turns.enough, false);
});

test('an answer lasts as many steps as were asked for', () => {
  const turns = new Turns({ block: 40, steps: 50 });
  turns.tap();
  run(turns, 10, LOUD);
  run(turns, 25, 0);
  assert.equal(turns.state, 'answering');
  run(turns, 40, 0, 0);
  assert.deepEqual(run(turns, 200, 0, LOUD), ['listening@99 over'], '50 steps of 80 ms, from its first sound');
  assert.equal(turns.enough, true);
});

test('an agent that answers into the silence has the turn at once, but not into a breath', () => {
  const turns = new Turns({ block: 40, silence: 1000, overlap: 300 });
  turns.tap();
  assert.deepEqual(run(turns, 50, 0, LOUD), [], 'it may greet');
  run(turns, 10, LOUD, LOUD);
  assert.deepEqual(run(turns, 20, 0, LOUD), ['answering@7']);
});

test('an answer that never begins is waited for, and no longer than that', () => {
  const turns = new Turns({ block: 40, patience: 2000, quiet: 400 });
  turns.tap();
  run(turns, 10, LOUD);
  run(turns, 25, 0);
  assert.deepEqual(run(turns, 100, 0, 0), ['listening@49 over']);
});

test('a tap while it answers cuts it short; a tap while it listens rests', () => {
  const turns = new Turns();
  assert.equal(turns.tap(), false);
  run(turns, 10, LOUD);
  run(turns, 25, 0);
  assert.equal(turns.tap(), true);
  assert.equal(turns.state, 'listening');
  assert.equal(turns.tap(), false);
  assert.equal(turns.runs, false);
  assert.deepEqual(run(turns, 100, LOUD), []);
});

test('latency is the age of what is heard: since its counterpart was recorded', () => {
  const latency = new Latency();
  assert.equal(latency.heard(0, 0), null);
  for (let i = 0; i < 10; i++) latency.send(960, 40 * (i + 1)); // recorded up to 400 ms
  assert.equal(latency.heard(960, 200), 160, 'the last sample of the first block was recorded at 40 ms');
  assert.equal(latency.heard(960 + 480, 240), 180, 'one in the middle of the second at 60 ms');
  assert.equal(latency.heard(960 + 480, 250), 190);
  latency.lose(960);
  assert.equal(latency.heard(960 + 480, 250), 150, 'what the server did not hear has no counterpart');
  assert.equal(latency.heard(960 * 20, 900), null, 'what was not sent yet has none either');
});

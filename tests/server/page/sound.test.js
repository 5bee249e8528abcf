import assert from 'node:assert/strict';
import { test } from 'node:test';

import { RATE } from '../../../src/personaplex/server/page/static/jitter.js';
import { fromBase64, loudness, rms, toBase64, toInt16 } from '../../../src/personaplex/server/page/static/pcm.js';
import { Recording } from '../../../src/personaplex/server/page/static/recording.js';
import { Resampler } from '../../../src/personaplex/server/page/static/resample.js';

test('sound goes through base64 and back, cut at full scale, little end first', () => {
  const pcm = Float32Array.of(0, 0.5, -0.5, 1, -1, 3, -3);
  const back = fromBase64(toBase64(pcm));
  pcm.forEach((x, i) => assert.ok(Math.abs(back[i] - Math.max(-1, Math.min(1, x))) < 1e-4));
  assert.equal(toBase64(Float32Array.of(1)), '/38='); // 0x7fff
  assert.equal(toInt16(Float32Array.of(-1))[0], -32767);
});

test('loudness is 0 at -60 dB and 1 at full scale', () => {
  assert.equal(loudness(0), 0);
  assert.ok(Math.abs(loudness(0.001)) < 1e-3);
  assert.ok(Math.abs(loudness(1) - 1) < 1e-3);
  assert.ok(Math.abs(rms(new Float32Array(10).fill(-0.25)) - 0.25) < 1e-6);
});

for (const [from, to] of [[48000, 24000], [44100, 24000], [24000, 48000], [24000, 44100]]) {
  test(`${from} to ${to}: a tone stays itself, in any pieces, and what cannot be kept is gone`, () => {
    const tone = (f) => Float32Array.from({ length: from }, (_, i) => Math.sin((2 * Math.PI * f * i) / from));
    const through = (pcm, size) => {
      const resampler = new Resampler(from, to);
      const out = [];
      for (let at = 0; at < pcm.length; at += size) out.push(...resampler.push(pcm.subarray(at, at + size)));
      return out;
    };
    const whole = through(tone(1000), from);
    const pieces = through(tone(1000), 128);
    assert.ok(Math.abs(pieces.length - whole.length) <= 1);
    pieces.slice(0, whole.length).forEach((x, i) => assert.ok(Math.abs(x - whole[i]) < 1e-5));
    assert.ok(Math.abs(whole.length - to) < 40);
    for (let i = 500; i < whole.length - 500; i += 97) {
      assert.ok(Math.abs(whole[i] - Math.sin((2 * Math.PI * 1000 * i) / to)) < 5e-3, `sample ${i}`);
    }
    if (to < from) assert.ok(rms(Float32Array.from(through(tone(15000), from).slice(500, -500))) < 0.01);
  });
}

test('a recording is a stereo WAV: the user left, the agent right', () => {
  const recording = new Recording();
  recording.push(Float32Array.of(0.5, 0.5), Float32Array.of(-0.5, 0));
  recording.push(Float32Array.of(1), Float32Array.of(0.25));
  const bytes = recording.wav();
  const view = new DataView(bytes.buffer);
  assert.equal(String.fromCharCode(...bytes.subarray(0, 4), ...bytes.subarray(8, 15)), 'RIFFWAVEfmt');
  assert.deepEqual([view.getUint16(22, true), view.getUint32(24, true), view.getUint16(34, true)], [2, RATE, 16]);
  assert.equal(view.getUint32(40, true), 12);
  assert.equal(view.getUint32(4, true), bytes.length - 8);
  const found = Array.from({ length: 6 }, (_, i) => view.getInt16(44 + 2 * i, true));
  assert.deepEqual(found, [16384, -16383, 16384, 0, 32767, 8192]);
});

test('a recording ends after an hour', () => {
  const recording = new Recording();
  recording.length = 3600 * RATE;
  recording.push(new Float32Array(2), new Float32Array(2));
  assert.equal(recording.length, 3600 * RATE);
  assert.ok(recording.full);
});

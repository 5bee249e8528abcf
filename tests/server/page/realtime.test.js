import assert from 'node:assert/strict';
import { test } from 'node:test';

import { toBase64 } from '../../../src/personaplex/server/page/static/pcm.js';
import { Realtime } from '../../../src/personaplex/server/page/static/realtime.js';

/** A server at the other end of sockets that a test opens, feeds and breaks. */
function line() {
  const seen = [];
  const sockets = [];
  const waiting = [];
  let clock = 0;
  const open = () => {
    const socket = { readyState: 0, bufferedAmount: 0, sent: [], send: (text) => socket.sent.push(JSON.parse(text)), close: () => (socket.readyState = 3) };
    sockets.push(socket);
    return socket;
  };
  const call = new Realtime(open, (...told) => seen.push(told), { later: (work, ms) => waiting.push({ work, ms }), now: () => clock });
  return {
    call,
    seen,
    sockets,
    waiting,
    states: () => seen.filter(([what]) => what === 'state').map(([, state]) => state),
    last: () => sockets.at(-1),
    says: (event) => sockets.at(-1).onmessage({ data: JSON.stringify(event) }),
    opens() {
      sockets.at(-1).readyState = 1;
      sockets.at(-1).onopen();
    },
    breaks(code = 1006, reason = '') {
      sockets.at(-1).readyState = 3;
      sockets.at(-1).onclose({ code, reason });
    },
    wait(ms) {
      clock += ms;
      waiting.splice(0).forEach(({ work }) => work());
    },
  };
}

function lively() {
  const it = line();
  it.call.start({ instructions: 'Be kind.' });
  it.opens();
  it.says({ type: 'session.created', server_event_seq: 0, session: { resume_token: 'back', resume_seconds: 30 } });
  it.says({ type: 'session.updated', server_event_seq: 1, session: {} });
  it.says({ type: 'session.ready', server_event_seq: 2, seed: 5 });
  return it;
}

test('settings go in once the server answers, and it is live when they are taken', () => {
  const it = lively();
  assert.deepEqual(it.states(), ['connecting', 'preparing', 'live']);
  assert.deepEqual(it.last().sent, [{ type: 'session.update', session: { instructions: 'Be kind.' } }, { type: 'session.start' }]);
});

test('sound goes out as pcm16 and comes in as floats; nothing goes out before it is live', () => {
  const it = line();
  it.call.start({});
  assert.equal(it.call.send(new Float32Array(960)), false);
  const live = lively();
  assert.equal(live.call.send(Float32Array.of(0.5, -0.5)), true);
  assert.deepEqual(live.last().sent.at(-1), { type: 'input_audio_buffer.append', audio: toBase64(Float32Array.of(0.5, -0.5)) });
  live.says({ type: 'response.output_audio.delta', delta: toBase64(Float32Array.of(0.25)) });
  const [what, pcm] = live.seen.at(-1);
  assert.equal(what, 'audio');
  assert.ok(Math.abs(pcm[0] - 0.25) < 1e-3);
  live.says({ type: 'response.audio.delta', delta: toBase64(Float32Array.of(0.25)) });
  assert.equal(live.seen.filter(([name]) => name === 'audio').length, 2, 'the older name is understood, too');
  live.last().bufferedAmount = 1 << 20;
  assert.equal(live.call.send(new Float32Array(960)), false, 'a line that is stuck is not filled');
});

test('a broken line is taken up where it was, and a person waits longer each time', () => {
  const it = lively();
  it.says({ type: 'response.output_audio_transcript.delta', server_event_seq: 17, delta: 'Hello', item_id: 'a' });
  it.waiting.splice(0); // its heartbeats
  it.breaks(1006);
  assert.equal(it.call.state, 'resuming');
  assert.equal(it.call.send(new Float32Array(960)), false);
  const first = it.waiting[0].ms;
  it.wait(first);
  it.waiting.splice(0);
  it.breaks(1006); // once more, before it was open
  assert.ok(it.waiting[0].ms > first);
  it.wait(1000);
  it.opens();
  assert.deepEqual(it.last().sent, [{ type: 'session.resume', resume_token: 'back', server_event_seq: 17 }]);
  it.says({ type: 'session.created', server_event_seq: 1, session: { resume_token: 'another' } });
  it.says({ type: 'session.resumed', server_event_seq: 17 });
  assert.equal(it.call.sequence, 17, 'the session that a new line begins with is none of ours');
  assert.equal(it.call.resumeToken, 'back');
  assert.deepEqual(it.states(), ['connecting', 'preparing', 'live', 'resuming', 'live']);
  assert.equal(it.sockets.length, 3);
});

test('a line that cannot be taken up in time is told as lost, and nothing is tried any more', () => {
  const it = lively();
  it.breaks(1006);
  it.wait(31_000);
  it.waiting.splice(0);
  it.breaks(1006);
  assert.deepEqual(it.seen.slice(-2), [['problem', { code: 'lost', message: '' }], ['state', 'ended']]);
  assert.equal(it.waiting.length, 0);
});

test('a session that the server does not have any more is lost', () => {
  const it = lively();
  it.breaks(1006);
  it.wait(200);
  it.opens();
  it.says({ type: 'error', error: { code: 'session_resume_expired', message: 'there is no such session any more' } });
  assert.deepEqual(it.seen.slice(-2), [['problem', { code: 'lost', message: '' }], ['state', 'ended']]);
});

test('a full server is told in its own words, and not tried again', () => {
  const it = line();
  it.call.start({});
  it.opens();
  it.waiting.splice(0);
  it.says({ type: 'error', error: { code: 'resource_exhausted', message: 'all slots are taken: 1 of 1 in use' } });
  it.breaks(1013, 'full');
  const problem = it.seen.find(([what]) => what === 'problem')[1];
  assert.deepEqual(problem, { code: 'resource_exhausted', message: 'all slots are taken: 1 of 1 in use' });
  assert.equal(it.call.state, 'ended');
  assert.equal(it.waiting.length, 0);
});

test('an error in the middle is told, and the call goes on', () => {
  const it = lively();
  it.says({ type: 'error', error: { code: 'invalid_value', message: 'no such voice' } });
  assert.deepEqual(it.seen.at(-1), ['problem', { code: 'invalid_value', message: 'no such voice' }]);
  it.says({ type: 'error', error: { code: 'response_cancel_not_active', message: 'it had just ended' } });
  assert.equal(it.seen.filter(([what]) => what === 'problem').length, 1);
  assert.equal(it.call.state, 'live');
});

test('hanging up says so, ends, and what comes later is not heard', () => {
  const it = lively();
  it.call.close();
  assert.equal(it.last().sent.at(-1).type, 'session.close');
  assert.equal(it.call.state, 'ended');
  const before = it.seen.length;
  it.breaks(1000);
  assert.equal(it.seen.length, before);
  assert.equal(it.seen.some(([what]) => what === 'problem'), false);
});

test('only a response that is open can be taken back, and what was taken back is told', () => {
  const it = lively();
  it.call.cancel();
  assert.equal(it.last().sent.length, 2);
  it.says({ type: 'response.created', response: { id: 'r1' } });
  it.call.cancel();
  assert.deepEqual(it.last().sent.at(-1), { type: 'response.cancel', response_id: 'r1' });
  it.says({ type: 'response.done', response: { id: 'r1', status: 'cancelled' } });
  assert.deepEqual(it.seen.at(-1), ['cut']);
});

test('a line on which nothing comes any more is broken off and taken up, although the browser holds it open', () => {
  const it = lively();
  it.wait(4000);
  assert.deepEqual(it.last().sent.at(-1), { type: 'session.heartbeat' });
  it.says({ type: 'session.heartbeat_ack' });
  it.wait(4000);
  it.wait(9000);
  assert.equal(it.call.state, 'resuming');
  assert.equal(it.sockets[0].readyState, 3);
});

test('what the server shed is told in frames, and the end it gives a call in words', () => {
  const it = lively();
  it.says({ type: 'input_audio_buffer.overrun', dropped_ms: 240, total_ms: 240 });
  assert.deepEqual(it.seen.at(-1), ['lost', 3]);
  it.says({ type: 'session.closed', reason: 'shutdown' });
  assert.deepEqual(it.seen.slice(-2), [['problem', { code: 'unavailable', message: '' }], ['state', 'ended']]);
});

test('events of tomorrow do not disturb it', () => {
  const it = lively();
  it.says({ type: 'something.new', with: 'anything' });
  assert.equal(it.call.state, 'live');
});

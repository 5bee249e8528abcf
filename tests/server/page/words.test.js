import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Captions } from '../../../src/personaplex/server/page/static/captions.js';
import { ChatSocket } from '../../../src/personaplex/server/page/static/chat-socket.js';
import { credentials } from '../../../src/personaplex/server/page/static/credentials.js';
import { explain, obstacle } from '../../../src/personaplex/server/page/static/explanations.js';
import { face } from '../../../src/personaplex/server/page/static/faces.js';
import { Kept } from '../../../src/personaplex/server/page/static/kept.js';
import { Sessions } from '../../../src/personaplex/server/page/static/sessions.js';

test('the agent’s words appear when their sound is heard, not when they arrive', () => {
  const captions = new Captions();
  captions.agent('Good ', 0, 'a');
  captions.agent('evening.', 9600, 'a');
  assert.equal(captions.heard(-1), false);
  assert.equal(captions.heard(100), true);
  assert.deepEqual(captions.lines.map(({ text }) => text), ['Good ']);
  captions.heard(9600);
  assert.deepEqual(captions.lines.map(({ text, latest }) => [text, latest]), [['Good evening.', 'evening.']]);
});

test('a long pause, another’s words, or another item make a new line', () => {
  const captions = new Captions();
  captions.agent('One.', 0, 'a');
  captions.agent('Two.', 96_000, 'a');
  captions.heard(Infinity);
  captions.user('u', 'And you?', true);
  captions.agent('Three.', 97_000, 'a');
  captions.agent('Four.', 97_001, 'b');
  captions.heard(Infinity);
  assert.deepEqual(captions.lines.map(({ who, text }) => `${who}: ${text}`), ['agent: One.', 'agent: Two.', 'user: And you?', 'agent: Three.', 'agent: Four.']);
});

test('what the user said grows, is replaced by what was understood in the end, and vanishes if it was nothing', () => {
  const captions = new Captions();
  captions.user('u', 'I scream', false);
  captions.user('u', ' now', false);
  assert.equal(captions.lines[0].text, 'I scream now');
  captions.user('u', 'Ice cream now', true);
  assert.deepEqual(captions.lines.map(({ text, final }) => [text, final]), [['Ice cream now', true]]);
  captions.user('v', 'hm', false);
  captions.user('v', '', true);
  assert.equal(captions.lines.length, 1);
});

test('words that were taken back before they were heard are not shown, and the line says that it was cut', () => {
  const captions = new Captions();
  captions.agent('I was just ', 0, 'a');
  captions.agent('about to', 50_000, 'a');
  captions.heard(10_000);
  captions.cut(false);
  captions.heard(Infinity);
  assert.deepEqual(captions.lines.map(({ text, cut }) => [text, cut]), [['I was just ', true]]);
  assert.equal(captions.text('Sage'), 'Sage: I was just —');
  captions.agent('Well.', 200_000, 'b');
  captions.heard(Infinity);
  captions.cut(false);
  assert.equal(captions.lines.at(-1).cut, false, 'what was said to its end was not cut');
  captions.cut(true);
  assert.equal(captions.lines.at(-1).cut, true);
});

test('every trouble says what happened and what to do; the server’s own words come first where it is the reason', () => {
  assert.match(explain('NotAllowedError').text, /allow the microphone/);
  assert.match(explain('insecure').text, /https/);
  assert.equal(explain('resource_exhausted', 'all slots are taken: 2 of 2 in use').text, 'All slots are taken: 2 of 2 in use.');
  assert.equal(explain('anything', '').text, 'The reason is not known (anything).');
  assert.equal(obstacle({ isSecureContext: false, navigator: { mediaDevices: {} } }), 'insecure');
  assert.equal(obstacle({ isSecureContext: true, navigator: {} }), 'insecure');
  assert.equal(obstacle({ isSecureContext: true, navigator: { mediaDevices: {} } }), 'sound');
  assert.equal(obstacle({ isSecureContext: true, navigator: { mediaDevices: {} }, AudioWorkletNode: 1 }), null);
});

function storage(held = {}) {
  return { getItem: (key) => held[key] ?? null, setItem: (key, value) => (held[key] = value), held };
}

test('sessions are created, named, chosen, and found again after a reload; what was said is not written down', () => {
  const kept = storage();
  const sessions = new Sessions(kept);
  assert.equal(sessions.current, null);
  const first = sessions.create('sage', 1);
  sessions.said.push({ who: 'user', text: 'a secret' });
  const second = sessions.create('aria', 2);
  assert.notEqual(first.name, second.name);
  sessions.change({ name: '  ' });
  assert.equal(sessions.current.name, 'Chat 2', 'a name is never empty');
  sessions.change({ name: 'Plans', id: 'server-id' });
  sessions.choose(first.key);
  assert.equal(sessions.said[0].text, 'a secret');
  sessions.touch(3);
  const again = new Sessions(kept);
  assert.deepEqual(again.all.map(({ name, persona, id }) => [name, persona, id]), [['Chat 1', 'sage', null], ['Plans', 'aria', 'server-id']]);
  assert.equal(JSON.stringify(kept.held).includes('secret'), false);
  sessions.clear();
  assert.equal(sessions.said.length, 0);
  sessions.remove();
  assert.deepEqual([sessions.all.length, sessions.current.name], [1, 'Plans']);
  sessions.remove();
  assert.equal(sessions.current, null);
});

test('a browser’s storage that holds nonsense is as good as an empty one', () => {
  for (const nonsense of ['{', 'null', '[1]', '{"a":1}']) {
    assert.deepEqual(new Sessions(storage({ 'personaplex-chats': nonsense })).all, []);
  }
});

test('a chat comes back to its own session by itself, but not where it was refused', () => {
  const opened = [];
  const told = [];
  const waiting = [];
  const chat = new ChatSocket(
    (query) => {
      const socket = { readyState: 1, sent: [], send: (text) => socket.sent.push(JSON.parse(text)), close() {} };
      opened.push({ query, socket });
      return socket;
    },
    (event) => told.push(event),
    { later: (work, ms) => waiting.push({ work, ms }) },
  );
  const says = (event) => opened.at(-1).socket.onmessage({ data: JSON.stringify(event) });
  const ends = (code) => {
    waiting.splice(0);
    opened.at(-1).socket.onclose({ code, reason: '' });
    waiting.splice(0).forEach(({ work }) => work());
  };
  chat.connect(null, { persona: 'sage', title: 'Chat 1' });
  assert.deepEqual(opened[0].query, { persona: 'sage', title: 'Chat 1' });
  opened[0].socket.onopen();
  assert.equal(chat.say({ type: 'message', message: 'Hello' }), false, 'not before the server has said where they are');
  says({ type: 'session', session_id: 'abc', seq: 7 });
  waiting.shift().work();
  assert.deepEqual(opened[0].socket.sent, [{ type: 'ping' }], 'it says that it is there');
  says({ type: 'token', token: 'Hi', seq: 8 });
  ends(1006);
  assert.deepEqual(opened[1].query, { session_id: 'abc', after: '8' });
  says({ type: 'error', error: { code: 'not_found', message: 'there is no session' } });
  ends(1008);
  assert.deepEqual(opened[2].query, { persona: 'sage', title: 'Chat 1' }, 'what the server has forgotten begins anew');
  ends(1008);
  assert.equal(opened.length, 3, 'who is refused does not insist');
  chat.close();
});

test('a token is shown as a subprotocol, or in the address if it can be no name of one', () => {
  assert.deepEqual(credentials('', '/ws/chat?a=1', ['chat']), { path: '/ws/chat?a=1', protocols: ['chat'] });
  assert.deepEqual(credentials('a-good_1.token', '/x', ['chat']), { path: '/x', protocols: ['chat', 'openai-insecure-api-key.a-good_1.token'] });
  assert.deepEqual(credentials('a/b+c==', '/x?a=1', ['chat']), { path: '/x?a=1&token=a%2Fb%2Bc%3D%3D', protocols: ['chat'] });
  assert.equal(credentials('a/b', '/x', []).path, '/x?token=a%2Fb');
});

test('a browser that keeps nothing keeps it for as long as the page is open', () => {
  const kept = new Kept(() => {
    throw new Error('SecurityError');
  });
  assert.equal(kept.getItem('a'), null);
  kept.setItem('a', 'b');
  assert.equal(kept.getItem('a'), 'b');
  const real = storage();
  new Kept(() => real).setItem('a', 'c');
  assert.equal(real.held.a, 'c');
});

test('the button says what a press would do, in every state', () => {
  const says = (about) => face({ state: 'none', turn: null, muted: false, before: false, ...about });
  assert.equal(says({ state: 'loading' }).label, 'Loading');
  assert.deepEqual([says({}).label, says({ before: true }).label], ['Connect', 'Call again']);
  assert.equal(says({ state: 'connecting' }).label, 'Cancel');
  assert.match(says({ state: 'preparing' }).status, /voice and role/);
  assert.match(says({ state: 'resuming', turn: 'listening' }).status, /Coming back/);
  assert.equal(says({ state: 'live' }).label, 'Hang up');
  assert.equal(says({ state: 'live', muted: true }).status, 'You are muted.');
  assert.deepEqual(['resting', 'listening', 'answering'].map((turn) => says({ state: 'live', turn }).label), ['Tap to talk', 'Listening', 'Answering']);
  assert.match(says({ state: 'live', turn: 'answering', muted: true }).status, /It answers/);
});

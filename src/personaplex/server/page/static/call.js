/** A call, from the click to the last word: microphone, server, loudspeaker, captions, and what the page shows of them. */

import { openSocket } from './api.js';
import { Captions, CaptionsView } from './captions.js';
import { Dial } from './dial.js';
import { explain, obstacle } from './explanations.js';
import { face } from './faces.js';
import { Latency } from './latency.js';
import { loudness, rms } from './pcm.js';
import { Realtime } from './realtime.js';
import { Recording } from './recording.js';
import { Sound } from './sound.js';
import { Turns } from './turns.js';

const BLOCK = 960; // samples: 40 ms
const FRAME = 1920;
const ECHO_HOLD = 5; // blocks after the agent's last loud one in which a guarded microphone stays shut
const LOUD = 0.012;
const SMOOTHING = 0.95;

const element = (id) => document.getElementById(id);

export class Call {
  /** @param {import('./form.js').CallForm} form @param {() => void} askToken */
  constructor(form, askToken) {
    this.form = form;
    this.askToken = askToken;
    this.stage = element('call');
    this.dial = new Dial(element('dial'));
    this.view = new CaptionsView(element('captions'), element('captions-empty'));
    this.captions = new Captions();
    this.latency = new Latency();
    this.turns = new Turns();
    this.recording = null;
    this.records = false;
    this.calls = 0;
    this.realtime = null;
    this.sound = null;
    this.muted = false;
    this.#reset();
    element('connect').addEventListener('click', () => this.#press());
    element('end').addEventListener('click', () => this.hangUp());
    element('mute').addEventListener('click', () => this.#mute());
    element('record').addEventListener('click', () => this.#record());
    element('download').addEventListener('click', () => this.#download());
    element('copy').addEventListener('click', () => navigator.clipboard.writeText(this.captions.text(form.agentName)));
    element('trouble-action').addEventListener('click', () => this.#act());
    document.addEventListener('keydown', (event) => this.#key(event));
    this.show();
  }

  #reset() {
    this.pushed = 0; // samples of the agent that went to the loudspeaker
    this.hold = 0;
    this.dropped = 0; // frames
    this.atServer = 0;
    this.local = 0;
    this.blocks = 0;
    this.awaited = null; // since when an answer is waited for, in turns
    this.discarding = false;
    this.item = null; // what is being said, and where in what was pushed it began
    this.latency = new Latency();
    this.age = null; // milliseconds of what is heard, smoothed
    this.answerTook = null;
  }

  /** The server is there: calls can be made. */
  allow() {
    element('connect').disabled = false;
    this.show();
  }

  get live() {
    return this.realtime !== null;
  }

  #press() {
    if (!this.live) this.connect();
    else if (this.form.inTurns && this.realtime.state === 'live') this.#tap();
    else this.hangUp();
  }

  #tap() {
    if (this.turns.tap()) {
      this.discarding = true;
      this.realtime.cancel();
      this.#cut();
    }
    this.show();
  }

  async connect() {
    const missing = obstacle(window);
    if (missing) {
      this.trouble(missing);
      return;
    }
    this.trouble(null);
    this.#reset();
    this.captions = new Captions();
    this.calls++;
    this.turns = new Turns(this.form.turns);
    this.turns.set(this.form.inTurns);
    this.dial.clear();
    this.form.lock(true);
    const sound = new Sound((block) => this.#block(block), () => this.#unplugged());
    this.sound = sound;
    this.realtime = new Realtime(() => this.#socket(), (what, ...about) => this.#hear(what, ...about));
    this.show('Asking for the microphone…');
    try {
      await sound.open(this.form.ears);
    } catch (error) {
      if (this.sound !== sound) return; // it was given up meanwhile
      await this.#over();
      this.trouble(error.name ?? 'sound', '');
      return;
    }
    if (this.sound !== sound) {
      await sound.close();
      return;
    }
    this.realtime.start(this.form.session());
    // A telephone that darkens its screen would stop the microphone.
    this.awake = await navigator.wakeLock?.request('screen').catch(() => null);
    if (this.sound !== sound) this.awake?.release();
  }

  #socket() {
    return openSocket(`/v1/realtime?mode=${this.form.backend}`, 'realtime');
  }

  hangUp() {
    this.realtime?.close();
    if (this.realtime) this.#over();
  }

  async #over() {
    const sound = this.sound;
    this.sound = null;
    this.realtime = null;
    this.records = false;
    this.turns.set(false);
    this.captions.finish();
    this.form.lock(false);
    this.#levels(0, 0);
    this.view.draw(this.captions, this.form.agentName);
    this.show();
    this.awake?.release();
    await sound?.close();
  }

  /** What the server, or the way to it, tells. */
  #hear(what, ...about) {
    const told = {
      state: (state) => (state === 'ended' ? this.live && this.#over() : this.show()),
      audio: (pcm, item) => this.#play(pcm, item),
      pause: () => this.sound?.flush(),
      agent: (text, item) => this.discarding || this.captions.agent(text, this.pushed, item),
      user: (item, text, final) => this.captions.user(item, text, final),
      speech: (speaking) => this.#speech(speaking),
      cut: () => this.#cut(),
      lost: (frames) => {
        this.atServer += frames;
        this.latency.lose(frames * FRAME);
      },
      degenerate: (kind) => this.captions.marker(`What is heard is no speech any more (${kind}). A new call begins afresh.`),
      resumed: () => this.captions.marker('Connected again'),
      problem: ({ code, message }) => this.trouble(code, message),
    };
    told[what]?.(...about);
  }

  #play(pcm, item) {
    if (this.discarding) {
      this.latency.lose(pcm.length);
      return;
    }
    if (this.item?.id !== item) this.item = { id: item, start: this.pushed };
    this.pushed += pcm.length;
    this.sound?.play(pcm);
  }

  #cut() {
    this.sound?.clear();
    this.captions.cut(this.hold > 0);
    this.hold = 0;
  }

  #speech(speaking) {
    if (!speaking) this.awaited = performance.now();
    else if (this.form.backend === 'cascade' && !this.form.inTurns) this.#cut(); // the user speaks into the answer
  }

  /** 40 ms went by. */
  #block({ user, agent, waiting, cursor, underruns, dropped }) {
    if (!this.live) return;
    const heard = rms(user);
    const said = rms(agent);
    if (this.form.inTurns) this.#turn(heard, said);
    this.hold = said >= LOUD ? ECHO_HOLD : Math.max(0, this.hold - 1);
    const shut = this.muted || (this.form.guard && this.hold > 0) || (this.form.inTurns && !this.turns.hears);
    if (shut) user.fill(0); // silence: the agent's time goes on
    if (this.realtime.state === 'live' && (!this.form.inTurns || this.turns.runs)) {
      if (this.realtime.send(user)) this.latency.send(BLOCK, performance.now());
      else this.local += BLOCK / FRAME;
    }
    if (this.records) this.recording.push(user, agent);
    this.#levels(shut ? 0 : loudness(heard), loudness(said));
    this.captions.heard(cursor);
    this.#answered(said);
    const age = waiting > 0 ? this.latency.heard(cursor, performance.now()) : null;
    if (age !== null) this.age = this.age === null ? age : SMOOTHING * this.age + (1 - SMOOTHING) * age;
    this.dropped = Math.round(this.atServer + this.local + underruns + dropped / FRAME);
    if (++this.blocks % 5 === 0) this.#numbers();
    if (this.blocks % 25 === 0 && this.item && cursor > this.item.start) {
      this.realtime.acknowledge(this.item.id, (1000 * (cursor - this.item.start)) / 24000);
    }
    this.view.draw(this.captions, this.form.agentName);
  }

  #turn(heard, said) {
    const before = this.turns.state;
    const { changed, over } = this.turns.push(this.muted ? 0 : heard, said);
    if (this.discarding && this.turns.spoke && this.turns.hears) this.discarding = false;
    if (!changed) return;
    if (over) {
      this.discarding = this.turns.enough;
      if (this.turns.enough) this.#cut();
    }
    if (before === 'listening') this.awaited = performance.now() - this.turns.silence;
    this.show();
  }

  /** In turns, latency is from the last word to the first that is heard. */
  #answered(said) {
    if (this.awaited === null || said < LOUD) return;
    this.answerTook = performance.now() - this.awaited + this.sound.delay;
    this.awaited = null;
  }

  #numbers() {
    const duplex = this.form.backend === 'duplex' && !this.form.inTurns;
    const value = duplex ? this.age && this.age + this.sound.delay : this.answerTook;
    element('latency').textContent = value === null ? '–' : `${Math.round(value)} ms`;
    element('latency').dataset.grade = value !== null && value > (duplex ? 500 : 2000) ? 'poor' : 'good';
    element('dropped').textContent = this.dropped;
    element('dropped').dataset.grade = this.dropped > this.blocks / 200 + 2 ? 'poor' : 'good';
    const seconds = Math.floor((this.blocks * BLOCK) / 24000);
    element('clock').textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
    element('download').disabled = !this.recording?.length;
    if (this.recording?.full) this.#record(false);
    element('copy').disabled = this.captions.lines.length === 0;
  }

  #levels(user, agent) {
    this.dial.push(user, agent);
    for (const [id, level] of [['user-level', user], ['agent-level', agent]]) {
      element(id).style.setProperty('--level', level.toFixed(3));
      element(id).setAttribute('aria-valuenow', Math.round(100 * level));
    }
  }

  #unplugged() {
    if (!this.live) return;
    this.hangUp();
    this.trouble('unplugged');
  }

  /** The person changed something in the form. @param {string} name */
  changed(name) {
    if (name === 'ears' && this.live) this.sound?.change(this.form.ears).catch((error) => this.trouble(error.name));
    if (name === 'manner') {
      this.turns = new Turns(this.form.turns);
      this.turns.set(this.form.inTurns && this.live);
      this.discarding = false;
    }
    this.show();
  }

  #mute() {
    this.muted = !this.muted;
    element('mute').setAttribute('aria-pressed', this.muted);
    this.show();
  }

  /** On, off, and on again: one recording for a call. That of the last call stays until another begins. */
  #record(on = !this.records) {
    if (on && !(this.recording && this.recordedCall === this.calls)) this.recording = new Recording();
    this.recordedCall = this.calls;
    this.records = on && !this.recording.full;
    this.show();
  }

  #download() {
    const address = URL.createObjectURL(new Blob([this.recording.wav()], { type: 'audio/wav' }));
    const link = document.createElement('a');
    link.href = address;
    link.download = `personaplex-${new Date().toISOString().slice(0, 19).replaceAll(':', '-')}.wav`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  }

  #key(event) {
    const typing = event.target.closest?.('input, textarea, select, dialog, button, summary, [role=log]');
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && typing.tagName !== 'BUTTON') || this.stage.hidden) return;
    const key = event.key.toLowerCase();
    if (key === 'm' && !element('mute').disabled) this.#mute();
    else if (key === 'r' && !element('record').disabled) this.#record();
    else if (key === ' ' && !typing && !element('connect').disabled) this.#press();
    else return;
    event.preventDefault();
  }

  /** Say what went wrong, and what to do; null takes it away. */
  trouble(code, message = '') {
    const box = element('trouble');
    box.hidden = code === null;
    if (code === null) return;
    const { title, text, action = '' } = explain(code, message);
    box.dataset.code = code;
    element('trouble-title').textContent = title;
    element('trouble-text').textContent = text;
    element('trouble-action').textContent = action;
    this.#offerAction();
  }

  /** What is to be done then is a new call, so it waits until this one has ended. */
  #offerAction() {
    element('trouble-action').hidden = !element('trouble-action').textContent || this.live;
  }

  #act() {
    if (element('trouble').dataset.code === 'invalid_api_key') this.askToken();
    else this.connect();
  }

  /** Draw what the call is now. @param {string} [said] instead of the usual words */
  show(said) {
    const state = this.realtime?.state ?? 'none';
    const live = state === 'live';
    this.stage.dataset.state = this.live ? (live ? 'live' : 'busy') : 'idle';
    this.stage.dataset.turn = live && this.form.inTurns ? this.turns.state : '';
    const { icon, label, status } = face({
      state: element('connect').disabled ? 'loading' : state,
      turn: this.form.inTurns ? this.turns.state : null,
      muted: this.muted,
      before: this.captions.lines.length > 0,
    });
    element('connect-icon').setAttribute('d', icon);
    element('connect-label').textContent = label;
    element('status').textContent = said ?? status;
    element('mute').disabled = element('record').disabled = element('end').disabled = !this.live;
    element('end').hidden = !this.form.inTurns;
    this.#offerAction();
    element('record').setAttribute('aria-pressed', this.records);
    element('record-label').textContent = this.records ? 'Recording' : 'Record';
    element('download').disabled = !this.recording?.length;
  }
}

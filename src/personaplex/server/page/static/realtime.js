/**
 * One call over `/v1/realtime`: settings go in, events come out, and a broken connection is taken up where it was.
 * The socket is made by whoever makes this, so it is tested without a browser.
 *
 * `on(what, ...)` tells: state ('connecting', 'preparing', 'live', 'resuming', 'ended'), session, audio, agent, user,
 * speech, cut, pause, lost, degenerate, resumed, problem. After `ended` nothing follows.
 */

import { fromBase64, toBase64 } from './pcm.js';

const BEAT = 4000; // milliseconds between heartbeats
const SILENT = 12000; // without a word of the server the line is dead, whatever the browser believes
const QUIET = ['item_not_found', 'response_cancel_not_active']; // what was asked for had just ended
const FRAME_MS = 80;
const WAITS = [200, 400, 800, 1500, 3000]; // milliseconds before each attempt to come back; the last one again and again
const FULL = 1013;
const RESTARTING = 1012;
const NORMAL = 1000;
const LOST = 1006;

export class Realtime {
  /**
   * @param {() => WebSocket} open makes a socket
   * @param {(what: string, ...about: unknown[]) => void} on
   * @param {{later?: (work: () => void, ms: number) => unknown, now?: () => number}} [clock]
   */
  constructor(open, on, { later = (work, ms) => setTimeout(work, ms), now = () => performance.now() } = {}) {
    Object.assign(this, { open, on, later, now });
    this.state = 'idle';
    this.resumeToken = null;
    this.resumeSeconds = 30;
    this.sequence = 0; // of the last event that was received, for taking up again
    this.attempt = 0;
    this.lostAt = 0;
    this.heardAt = 0;
    this.refused = null;
    this.response = null;
  }

  /** @param {object} session what `session.update` is sent with */
  start(session) {
    this.session = session;
    this.#become('connecting');
    this.#connect();
  }

  #become(state) {
    if (this.state === 'ended' || this.state === state) return;
    this.state = state;
    this.on('state', state);
  }

  #connect() {
    const socket = this.open();
    this.socket = socket;
    this.heardAt = this.now();
    this.#beat(socket);
    socket.onopen = () => {
      if (this.resumeToken) {
        this.#say({ type: 'session.resume', resume_token: this.resumeToken, server_event_seq: this.sequence });
      }
    };
    socket.onmessage = ({ data }) => socket === this.socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.socket && this.#closed(code, reason);
  }

  #beat(socket) {
    this.later(() => {
      if (socket !== this.socket || this.state === 'ended' || this.state === 'resuming') return;
      if (this.now() - this.heardAt > SILENT) {
        socket.close();
        this.#closed(LOST, '');
        return;
      }
      this.#say({ type: 'session.heartbeat' });
      this.#beat(socket);
    }, BEAT);
  }

  #closed(code, reason) {
    if (this.state === 'ended') return;
    const final = [FULL, RESTARTING, NORMAL].includes(code) || !this.resumeToken;
    if (this.refused || final) {
      this.#end(this.refused ?? problemOf(code, reason, this.resumeToken !== null));
      return;
    }
    if (this.state !== 'resuming') {
      this.lostAt = this.now();
      this.attempt = 0;
      this.#become('resuming');
    }
    if (this.now() - this.lostAt > 1000 * this.resumeSeconds) {
      this.#end({ code: 'lost', message: '' });
      return;
    }
    this.socket = null;
    this.later(() => this.state === 'resuming' && this.#connect(), WAITS[Math.min(this.attempt++, WAITS.length - 1)]);
  }

  #end(problem) {
    if (this.state === 'ended') return;
    if (problem) this.on('problem', problem);
    this.#become('ended');
    this.socket?.close(NORMAL);
  }

  #say(event) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(event));
  }

  /** 40 ms of the user. @returns {boolean} whether it went out @param {Float32Array} pcm */
  send(pcm) {
    if (this.state !== 'live' || !this.socket || this.socket.bufferedAmount > 1 << 18) return false; // five seconds of sound
    this.#say({ type: 'input_audio_buffer.append', audio: toBase64(pcm) });
    return true;
  }

  /** Take back what the agent is saying. */
  cancel() {
    if (this.response) this.#say({ type: 'response.cancel', response_id: this.response });
  }

  /** How much of an item's sound was heard. @param {string} item @param {number} milliseconds */
  acknowledge(item, milliseconds) {
    this.#say({ type: 'playback.ack', item_id: item, played_ms: Math.round(milliseconds) });
  }

  /** Hang up. */
  close() {
    this.#say({ type: 'session.close' });
    this.#end(null);
  }

  #take(event) {
    this.heardAt = this.now();
    // A new line begins with a session of its own, which is not wanted: the old one is asked for.
    if (this.state === 'resuming' && event.type !== 'session.resumed' && event.type !== 'error') return;
    this.sequence = event.server_event_seq ?? this.sequence;
    const own = HANDLERS[event.type.replace(/^response\.(audio|text)/, 'response.output_$1')];
    own?.call(this, event, (state) => this.#become(state), (problem) => this.#end(problem), (said) => this.#say(said));
  }
}

function problemOf(code, reason, talked) {
  if (code === NORMAL) return talked ? { code: 'closed', message: '' } : { code: 'unreachable', message: '' };
  if (code === FULL) return { code: 'resource_exhausted', message: reason };
  if (code === RESTARTING) return { code: 'unavailable', message: reason };
  return { code: talked ? 'lost' : 'unreachable', message: '' };
}

const ENDS = { shutdown: 'unavailable', unread: 'lost', vanished: 'lost', error: 'failed' };

/** What each of the server's events does. `this` is the call. @type {Record<string, Function>} */
const HANDLERS = {
  'session.created'({ session }, become, end, say) {
    this.resumeToken = session.resume_token ?? null;
    this.resumeSeconds = session.resume_seconds ?? this.resumeSeconds;
    become('preparing');
    say({ type: 'session.update', session: this.session });
    say({ type: 'session.start' });
  },
  'session.ready'(event, become) {
    become('live');
  },
  'session.resumed'(event, become) {
    become('live');
    this.on('resumed', event);
  },
  'session.closed'({ reason }, become, end) {
    this.refused ??= reason === 'client_close' ? null : { code: ENDS[reason] ?? 'closed', message: '' };
    if (this.refused) end(this.refused);
  },
  'response.created'({ response }) {
    this.response = response.id;
  },
  'response.done'({ response }) {
    if (this.response === response.id) this.response = null;
    if (response.status === 'cancelled') this.on('cut');
  },
  'response.output_audio.delta'({ delta, item_id: item }) {
    this.on('audio', fromBase64(delta), item);
  },
  'response.output_audio.done'() {
    this.on('pause');
  },
  'response.output_audio_transcript.delta'({ delta, item_id: item }) {
    this.on('agent', delta, item);
  },
  'response.degenerate'({ kind }) {
    this.on('degenerate', kind);
  },
  'output_audio_buffer.cleared'() {
    this.on('cut');
  },
  'input_audio_buffer.speech_started'() {
    this.on('speech', true);
  },
  'input_audio_buffer.speech_stopped'() {
    this.on('speech', false);
  },
  'conversation.item.input_audio_transcription.delta'({ item_id: item, delta }) {
    this.on('user', item, delta, false);
  },
  'conversation.item.input_audio_transcription.completed'({ item_id: item, transcript }) {
    this.on('user', item, transcript, true);
  },
  'input_audio_buffer.overrun'({ dropped_ms: dropped }) {
    this.on('lost', dropped / FRAME_MS);
  },
  error({ error: { code, message } }, become, end) {
    if (QUIET.includes(code)) return;
    if (this.state === 'live') this.on('problem', { code, message });
    else if (this.state === 'resuming') end({ code: 'lost', message: '' });
    else this.refused = { code, message };
  },
};

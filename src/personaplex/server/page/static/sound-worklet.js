/**
 * On the audio thread: what the server sent is played through the jitter buffer, and every 40 ms both sides of the same
 * moment are handed to the page: what the microphone heard, and what was played meanwhile. All at 24 kHz.
 */

import { JitterBuffer, RATE } from './jitter.js';
import { Resampler } from './resample.js';

const BLOCK = 960;

/** Samples in, blocks out. */
class Gathered {
  constructor() {
    this.pcm = new Float32Array(8 * BLOCK);
    this.length = 0;
  }

  push(pcm) {
    if (this.length + pcm.length > this.pcm.length) this.length = 0; // the other side stopped; never in practice
    this.pcm.set(pcm, this.length);
    this.length += pcm.length;
  }

  take(n) {
    const block = this.pcm.slice(0, n);
    this.pcm.copyWithin(0, n, this.length);
    this.length = Math.max(0, this.length - n);
    return block;
  }
}

class Sound extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new JitterBuffer();
    this.up = new Resampler(RATE, sampleRate);
    this.down = new Resampler(sampleRate, RATE);
    this.user = new Gathered();
    this.agent = new Gathered();
    this.ready = new Gathered(); // at the context's rate
    this.piece = new Float32Array(64);
    this.port.onmessage = ({ data }) => this.#take(data);
  }

  #take({ pcm, what }) {
    if (pcm) this.buffer.push(pcm);
    else if (what === 'clear') this.buffer.clear();
    else if (what === 'flush') this.buffer.flush();
  }

  process([[microphone]], [[out]]) {
    if (sampleRate === RATE) {
      this.buffer.pull(out);
      this.agent.push(out);
    } else {
      while (this.ready.length < out.length) {
        this.buffer.pull(this.piece);
        this.agent.push(this.piece);
        this.ready.push(this.up.push(this.piece));
      }
      out.set(this.ready.take(out.length));
    }
    this.user.push(this.down.push(microphone ?? new Float32Array(out.length)));
    while (this.user.length >= BLOCK) this.#report();
    return true;
  }

  #report() {
    const { waiting, cursor, underruns, dropped, skipped, target } = this.buffer;
    const user = this.user.take(BLOCK);
    const agent = this.agent.take(BLOCK);
    const about = { waiting, cursor, underruns, dropped, skipped, target: (1000 * target) / RATE };
    this.port.postMessage({ user, agent, ...about }, [user.buffer, agent.buffer]);
  }
}

registerProcessor('sound', Sound);

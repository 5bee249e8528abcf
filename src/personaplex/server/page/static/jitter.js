/**
 * A jitter buffer: sound arrives in bursts, and leaves evenly. Pure: no clock, no browser; time is samples.
 *
 * It starts to play `target` samples after the first that waits, those that came with it counted: a packet of 80 ms and
 * a target of 120 play 40 ms after its arrival, and forgive the next packet 40 ms. When it runs dry it fades out, asks for more next time, and
 * counts an underrun. When too much waits (a burst after a stall), it first leaves out quiet blocks, and cuts into
 * speech only beyond `most`: a delay is bounded, and words are lost last. Long calm lets the target shrink again.
 */

export const RATE = 24000;
const BLOCK = 240; // 10 ms: what is judged quiet, or left out, at once
const FADE = 120; // 5 ms: no edge is heard as a click
const QUIET = 0.006; // root mean square of a block that nobody misses

/** @param {number} milliseconds */
const samples = (milliseconds) => Math.round((milliseconds * RATE) / 1000);

export class JitterBuffer {
  /**
   * Milliseconds: `start` of sound or waiting before the first sample, `step` more after each underrun up to `ceiling`, `slack`
   * above the target before quiet is left out, `most` ever to wait, `calm` without an underrun before the target
   * shrinks by a step.
   */
  constructor({ start = 120, step = 20, ceiling = 320, slack = 80, most = 1000, calm = 10000 } = {}) {
    this.floor = samples(start);
    this.step = samples(step);
    this.ceiling = samples(ceiling);
    this.slack = samples(slack);
    this.most = samples(most);
    this.calm = samples(calm);
    this.target = this.floor;
    this.ring = new Float32Array(this.most + samples(1000));
    this.read = 0;
    this.size = 0;
    this.playing = false;
    this.waited = 0; // samples of time that the first one has waited
    this.ending = false; // nothing follows: running dry is no underrun
    this.last = 0; // the sample played last, to fade from
    this.fadeIn = 0; // samples of a fade that are still to come
    this.smooth = 0; // runs without an underrun, in samples
    this.cursor = 0; // samples of the stream that were played or left out
    this.underruns = 0;
    this.dropped = 0; // samples of speech that were cut
    this.skipped = 0; // samples of quiet that were left out
  }

  /** Add sound of any length. @param {Float32Array} pcm */
  push(pcm) {
    this.ending = false;
    for (let from = 0; from < pcm.length; from += samples(500)) {
      this.#add(pcm.subarray(from, from + samples(500)));
    }
  }

  #add(pcm) {
    const start = (this.read + this.size) % this.ring.length;
    const first = Math.min(pcm.length, this.ring.length - start);
    this.ring.set(pcm.subarray(0, first), start);
    this.ring.set(pcm.subarray(first), 0);
    this.size += pcm.length;
    if (this.size > this.most) {
      const over = this.size - Math.max(this.target, BLOCK);
      this.dropped += over;
      this.#forget(over);
      this.fadeIn = FADE;
    }
  }

  /** Fill `out` with what is to be heard now; silence where there is nothing. @param {Float32Array} out */
  pull(out) {
    if (!this.playing && this.size > 0) {
      this.playing = this.size + this.waited >= this.target;
      this.waited = this.playing ? 0 : this.waited + out.length;
      this.fadeIn = FADE;
    }
    if (this.playing) this.#leaveOutQuiet();
    const n = this.playing ? Math.min(out.length, this.size) : 0;
    for (let i = 0; i < n; i++) {
      out[i] = this.ring[(this.read + i) % this.ring.length];
      if (this.fadeIn > 0) out[i] *= 1 - this.fadeIn-- / FADE;
    }
    if (n > 0) this.last = out[n - 1];
    this.#forget(n);
    this.#fadeOut(out.subarray(n));
    if (this.playing && n < out.length) {
      this.playing = false;
      this.smooth = 0;
      if (!this.ending) {
        this.underruns++;
        this.target = Math.min(this.target + this.step, this.ceiling);
      }
    } else if (this.playing) {
      this.smooth += n;
      if (this.smooth >= this.calm) {
        this.smooth = 0;
        this.target = Math.max(this.target - this.step, this.floor);
      }
    }
  }

  /** Forget what was not played: it was taken back. The cursor passes over it. */
  clear() {
    this.#forget(this.size);
    this.playing = false;
    this.waited = 0;
  }

  /** The stream ended: what waits is played although it is less than the target, and its end is no underrun. */
  flush() {
    this.ending = true;
    if (this.size > 0) this.playing = true;
  }

  /** Milliseconds that wait, as far as they are not played yet. */
  get waiting() {
    return (1000 * this.size) / RATE;
  }

  #forget(n) {
    this.read = (this.read + n) % this.ring.length;
    this.size -= n;
    this.cursor += n;
  }

  #leaveOutQuiet() {
    while (this.size > this.target + this.slack + BLOCK && this.#rms(BLOCK) < QUIET) {
      this.skipped += BLOCK;
      this.#forget(BLOCK);
    }
  }

  #rms(n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += this.ring[(this.read + i) % this.ring.length] ** 2;
    return Math.sqrt(sum / n);
  }

  #fadeOut(out) {
    for (let i = 0; i < out.length; i++) {
      this.last = Math.abs(this.last) < 1e-4 ? 0 : this.last * (1 - 4 / FADE);
      out[i] = this.last;
    }
  }
}

/**
 * From one sample rate to another, piece by piece: for browsers that record or play at their own rate only.
 * Windowed sinc (Hann, 16 zero crossings on each side): what lies above half the lower rate is 60 dB down.
 */

const CROSSINGS = 16;

export class Resampler {
  /** @param {number} from @param {number} to both in samples per second */
  constructor(from, to) {
    this.ratio = from / to;
    this.cutoff = Math.min(1, to / from) * 0.95;
    this.reach = Math.ceil(CROSSINGS / this.cutoff);
    this.held = new Float32Array(this.reach); // silence before the first sample
    this.at = this.reach; // where in `held` the next output lies
  }

  /** The samples that `pcm` completes. @param {Float32Array} pcm @returns {Float32Array} */
  push(pcm) {
    if (this.ratio === 1) return pcm;
    const all = new Float32Array(this.held.length + pcm.length);
    all.set(this.held);
    all.set(pcm, this.held.length);
    const n = Math.max(0, Math.ceil((all.length - this.reach - this.at) / this.ratio));
    const out = new Float32Array(n);
    for (let i = 0; i < n; i++) out[i] = this.#at(all, this.at + i * this.ratio);
    this.at += n * this.ratio;
    const gone = Math.max(0, Math.floor(this.at) - this.reach);
    this.held = all.slice(gone);
    this.at -= gone;
    return out;
  }

  #at(all, place) {
    let sum = 0;
    for (let i = Math.ceil(place - this.reach); i <= place + this.reach; i++) {
      if (i < 0 || i >= all.length) continue;
      const x = (i - place) * this.cutoff;
      const window = 0.5 + 0.5 * Math.cos((Math.PI * (i - place)) / this.reach);
      sum += all[i] * window * this.cutoff * (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
    }
    return sum;
  }
}

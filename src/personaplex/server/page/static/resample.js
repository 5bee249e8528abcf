/**
 * From one sample rate to another, piece by piece: for browsers that record or play at their own rate only.
 * Windowed sinc (Hann, 16 zero crossings on each side), from a table: what lies above half the lower rate is 60 dB down.
 */

const CROSSINGS = 16;
const FINE = 256; // entries of the table per sample; between them it is a straight line

export class Resampler {
  /** @param {number} from @param {number} to both in samples per second */
  constructor(from, to) {
    this.ratio = from / to;
    const cutoff = Math.min(1, to / from) * 0.95;
    this.reach = Math.ceil(CROSSINGS / cutoff);
    this.table = Float32Array.from({ length: this.reach * FINE + 2 }, (_, i) => weight(i / FINE, cutoff, this.reach));
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
    const last = Math.min(all.length - 1, Math.floor(place + this.reach));
    for (let i = Math.max(0, Math.ceil(place - this.reach)); i <= last; i++) {
      const x = Math.abs(i - place) * FINE;
      const low = Math.floor(x);
      sum += all[i] * (this.table[low] + (x - low) * (this.table[low + 1] - this.table[low]));
    }
    return sum;
  }
}

/** Of a sample that lies `distance` away. */
function weight(distance, cutoff, reach) {
  if (distance >= reach) return 0;
  const x = Math.PI * distance * cutoff;
  return (0.5 + 0.5 * Math.cos((Math.PI * distance) / reach)) * cutoff * (x === 0 ? 1 : Math.sin(x) / x);
}

/**
 * How old what is heard is: since the moment that its counterpart, the same sample of the user, was recorded. A
 * full-duplex agent answers frame by frame, so this is the whole way: a block gathered, the line, the server's step, the
 * line back, the jitter buffer. Pure; time is given.
 */

const PER_MS = 24; // samples
const MOST = 3000; // blocks: two minutes without an answer

export class Latency {
  constructor() {
    /** @type {{end: number, at: number}[]} */
    this.marks = [];
    this.sent = 0;
    this.lost = 0; // samples that were sent and have no counterpart
  }

  /** `n` samples that were recorded up to `now` (milliseconds) went out. */
  send(n, now) {
    this.sent += n;
    this.marks.push({ end: this.sent, at: now });
    if (this.marks.length > MOST) this.marks.shift();
  }

  /** The server did not hear `n` of the samples. */
  lose(n) {
    this.lost += n;
  }

  /** Milliseconds, when sample `cursor` of the agent's is played at `now`; null while there is none. */
  heard(cursor, now) {
    const sample = cursor + this.lost;
    while (this.marks.length > 1 && this.marks[0].end < sample) this.marks.shift();
    const mark = this.marks[0];
    if (!cursor || !mark || mark.end < sample) return null;
    return now - (mark.at - (mark.end - sample) / PER_MS);
  }
}

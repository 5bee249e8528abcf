/** How long an answer takes: from the moment a sample was sent until its counterpart came back. Pure; time is given. */

const SMOOTHING = 0.85; // as the reference's own page smooths it

export class Latency {
  constructor() {
    this.reset();
  }

  reset() {
    /** @type {{end: number, at: number}[]} */
    this.marks = [];
    this.sent = 0;
    this.received = 0;
    /** @type {number|null} */
    this.milliseconds = null;
  }

  /** `n` samples went out at `now` (milliseconds). */
  send(n, now) {
    this.sent += n;
    this.marks.push({ end: this.sent, at: now });
    if (this.marks.length > 3000) this.marks.shift(); // two minutes without an answer
  }

  /** `n` samples came back at `now`; `lost` of what was sent will have no counterpart. */
  receive(n, now, lost = 0) {
    this.received += n + lost;
    let mark;
    while (this.marks.length && this.marks[0].end <= this.received) mark = this.marks.shift();
    if (!mark) return;
    const taken = now - mark.at;
    this.milliseconds =
      this.milliseconds === null ? taken : SMOOTHING * this.milliseconds + (1 - SMOOTHING) * taken;
  }
}

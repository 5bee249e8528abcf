/** A call on record: the user left, the agent right, as both were heard at the same moment. Kept in this page alone. */

import { RATE } from './jitter.js';
import { toInt16 } from './pcm.js';

const MOST_SECONDS = 3600; // 345 MB: what a page can hold

export class Recording {
  constructor() {
    /** @type {Int16Array[]} */
    this.left = [];
    /** @type {Int16Array[]} */
    this.right = [];
    this.length = 0;
  }

  get seconds() {
    return this.length / RATE;
  }

  get full() {
    return this.seconds >= MOST_SECONDS;
  }

  /** Both sides of the same moment, equally long. @param {Float32Array} user @param {Float32Array} agent */
  push(user, agent) {
    if (this.full) return;
    this.left.push(toInt16(user));
    this.right.push(toInt16(agent));
    this.length += user.length;
  }

  /** The file: RIFF, 16-bit PCM, two channels, 24 kHz. @returns {Uint8Array} */
  wav() {
    const n = 4 * this.length;
    const bytes = new Uint8Array(44 + n);
    const view = new DataView(bytes.buffer);
    const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
    text(0, 'RIFF');
    view.setUint32(4, 36 + n, true);
    text(8, 'WAVEfmt ');
    view.setUint32(16, 16, true);
    view.setUint16(20, 1, true);
    view.setUint16(22, 2, true);
    view.setUint32(24, RATE, true);
    view.setUint32(28, 4 * RATE, true);
    view.setUint16(32, 4, true);
    view.setUint16(34, 16, true);
    text(36, 'data');
    view.setUint32(40, n, true);
    [this.left, this.right].forEach((pieces, channel) => {
      let at = 44 + 2 * channel;
      for (const piece of pieces) {
        for (const x of piece) {
          view.setInt16(at, x, true);
          at += 4;
        }
      }
    });
    return bytes;
  }
}

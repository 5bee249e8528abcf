/**
 * Turn-based talking, as a state machine over blocks of sound: tap, talk, silence ends it, the answer is heard, and it
 * is the user's turn again. Pure: loudness in, what to send and what changed out; time is blocks.
 *
 *   resting --tap--> listening --silence after speech--> answering --quiet, or enough steps--> listening
 *      ^                 |tap                                |tap
 *      +-----------------+                                   +--> listening (the answer is cut short)
 */

export const STEP_MS = 80;

export class Turns {
  /**
   * `block` milliseconds of each block; `silence` ends what the user says; `quiet` ends the answer; `patience` for an
   * answer to begin; `steps` of 80 ms an answer lasts at most; `loud` is speech (root mean square). An agent that begins
   * to answer after `overlap` of the silence has the turn at once.
   */
  constructor({ block = 40, silence = 1000, quiet = 1500, patience = 8000, steps = 75, loud = 0.012, overlap = 300 } = {}) {
    Object.assign(this, { block, silence, quiet, patience, steps, loud, overlap });
    this.enough = false; // the last answer was ended for its length
    this.state = 'resting';
    this.#enter('resting');
  }

  #enter(state) {
    this.state = state;
    this.spoke = false; // whoever's turn it is
    this.still = 0;
    this.heard = 0;
  }

  /** The button was pressed. @returns {boolean} whether an answer is to be cut short */
  tap() {
    const cut = this.state === 'answering';
    this.#enter(this.state === 'listening' ? 'resting' : 'listening');
    return cut;
  }

  /** Go on listening, or rest: the call began or ended. @param {boolean} on */
  set(on) {
    this.#enter(on ? 'listening' : 'resting');
  }

  /** One block of the microphone, and how loud the agent is meanwhile. @param {number} user @param {number} agent */
  push(user, agent) {
    const before = this.state;
    if (this.state === 'listening') this.#listen(user, agent);
    else if (this.state === 'answering') this.#answer(agent);
    return { changed: this.state !== before, over: before === 'answering' && this.state !== before };
  }

  #listen(user, agent) {
    if (user >= this.loud) {
      this.spoke = true;
      this.still = 0;
    } else if (this.spoke) {
      this.still += this.block;
      const taken = agent >= this.loud && this.still >= this.overlap;
      if (taken || this.still >= this.silence) this.#enter('answering');
    }
  }

  #answer(agent) {
    if (agent >= this.loud / 4) {
      this.spoke = true;
      this.still = 0;
    } else {
      this.still += this.block;
    }
    if (this.spoke) this.heard += this.block;
    this.enough = this.heard >= this.steps * STEP_MS;
    if (this.enough || this.still >= (this.spoke ? this.quiet : this.patience)) this.#enter('listening');
  }

  /** Whether the microphone is heard, or silence goes out in its place. */
  get hears() {
    return this.state === 'listening';
  }

  /** Whether the call's clock runs at all: without sound sent, a full-duplex agent does not live on. */
  get runs() {
    return this.state !== 'resting';
  }
}

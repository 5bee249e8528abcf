/** Microphone and loudspeaker of a call. Asking for the microphone must follow a click, or phones stay silent. */

import { RATE } from './jitter.js';

/** What the browser does to the microphone: echo is taken out for loudspeakers, and nothing is touched for headphones. */
const TREATMENT = {
  speakers: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  headphones: { echoCancellation: false, noiseSuppression: true, autoGainControl: true },
};

export class Sound {
  /** `onblock` gets every 40 ms of both sides and the buffer's numbers; `onlost` is called when the microphone is gone. */
  constructor(onblock, onlost) {
    this.onblock = onblock;
    this.onlost = onlost;
    this.context = null;
    this.node = null;
    this.stream = null;
    this.source = null;
  }

  /** Raises what getUserMedia raises (NotAllowedError, NotFoundError, ...). @param {'speakers'|'headphones'} ears */
  async open(ears) {
    const stream = await microphone(ears);
    this.context = await contextFor(stream);
    await this.context.audioWorklet.addModule('/page/sound-worklet.js');
    this.node = new AudioWorkletNode(this.context, 'sound', { numberOfInputs: 1, outputChannelCount: [1], channelCount: 1, channelCountMode: 'explicit' });
    this.node.port.onmessage = ({ data }) => this.onblock(data);
    this.node.connect(this.context.destination);
    this.#use(stream);
    await this.context.resume();
    document.addEventListener('visibilitychange', this.#wake);
  }

  /** The same call with other ears. @param {'speakers'|'headphones'} ears */
  async change(ears) {
    if (!this.context) return;
    this.stream?.getTracks().forEach((track) => track.stop()); // some browsers treat a device only one way at a time
    const stream = await microphone(ears);
    if (this.context) this.#use(stream);
    else stream.getTracks().forEach((track) => track.stop());
  }

  #use(stream) {
    this.source?.disconnect();
    this.stream = stream;
    this.source = this.context.createMediaStreamSource(stream);
    this.source.connect(this.node);
    for (const track of stream.getTracks()) track.onended = () => this.stream === stream && this.onlost();
  }

  #wake = () => this.context?.state !== 'running' && this.context?.resume();

  /** @param {Float32Array} pcm at 24 kHz */
  play(pcm) {
    this.node?.port.postMessage({ pcm }, [pcm.buffer]);
  }

  /** What waits to be played was taken back. */
  clear() {
    this.node?.port.postMessage({ what: 'clear' });
  }

  /** Nothing follows for now: what waits is played. */
  flush() {
    this.node?.port.postMessage({ what: 'flush' });
  }

  /** Milliseconds from the worklet to the ear. */
  get delay() {
    return 1000 * ((this.context?.baseLatency ?? 0) + (this.context?.outputLatency ?? 0));
  }

  async close() {
    document.removeEventListener('visibilitychange', this.#wake);
    this.stream?.getTracks().forEach((track) => track.stop());
    const context = this.context;
    this.context = this.node = this.stream = this.source = null;
    await context?.close();
  }
}

const microphone = (ears) =>
  navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...TREATMENT[ears] }, video: false });

/** At the model's own rate; at the device's where a browser connects microphones to no other (Firefox). */
async function contextFor(stream) {
  const context = new AudioContext({ sampleRate: RATE, latencyHint: 'interactive' });
  try {
    context.createMediaStreamSource(stream).disconnect();
    return context;
  } catch {
    await context.close();
    return new AudioContext({ latencyHint: 'interactive' });
  }
}

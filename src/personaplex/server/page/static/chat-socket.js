/**
 * One chat over `/ws/chat`: text goes in, tokens come out. When the line breaks it comes back by itself, to the same
 * session, after the last event that it knows.
 */

const WAITS = [250, 500, 1000, 2000, 5000];
const PING_MS = 20000;
const REFUSED = 1008;

export class ChatSocket {
  /**
   * @param {(query: Record<string, string>) => WebSocket} open
   * @param {(event: object) => void} on the server's events, and {type: 'state', state: 'open'|'closed'}
   */
  constructor(open, on, { later = (work, ms) => setTimeout(work, ms) } = {}) {
    Object.assign(this, { open, on, later });
    this.attempt = 0;
    this.wanted = false;
    this.forgotten = false;
    this.greeted = false;
    this.socket = null;
  }

  /** @param {string|null} session null for a new one @param {{persona: string, title: string}} wanted of a new one */
  connect(session, wanted) {
    this.session = session;
    this.begin = wanted;
    this.after = null;
    this.wanted = true;
    this.#connect();
  }

  #connect() {
    const socket = this.open(this.#query());
    this.socket = socket;
    this.greeted = false;
    socket.onopen = () => socket === this.socket && this.on({ type: 'state', state: 'open' });
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.attempt = 0;
      const event = JSON.parse(data);
      this.after = event.seq ?? this.after;
      if (event.type === 'session') {
        this.session = event.session_id;
        this.greeted = true;
      }
      if (event.type === 'error' && event.error?.code === 'not_found') this.#begins();
      if (event.type !== 'pong') this.on(event);
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.socket || !this.wanted) return;
      this.on({ type: 'state', state: 'closed', code, reason });
      if (code === REFUSED && !this.forgotten) return;
      this.forgotten = false;
      this.later(() => this.wanted && socket === this.socket && this.#connect(), WAITS[Math.min(this.attempt++, WAITS.length - 1)]);
    };
    this.#ping(socket);
  }

  #query() {
    if (!this.session) return this.begin;
    return this.after === null ? { session_id: this.session } : { session_id: this.session, after: String(this.after) };
  }

  #ping(socket) {
    this.later(() => {
      if (socket !== this.socket || !this.wanted) return;
      this.say({ type: 'ping' });
      this.#ping(socket);
    }, PING_MS);
  }

  /** The server does not know the session any more: a new one follows. */
  #begins() {
    this.session = null;
    this.after = null;
    this.forgotten = true;
  }

  /** Whether the server has said where the two are: what is said before could be taken for what it does not know of. */
  get isOpen() {
    return this.socket?.readyState === 1 && this.greeted;
  }

  /** @returns {boolean} whether it went out @param {object} event */
  say(event) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(event));
    return true;
  }

  close() {
    this.wanted = false;
    this.socket?.close(1000);
    this.socket = null;
  }
}

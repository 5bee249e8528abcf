/** One chat over `/ws/chat`: text goes in, tokens come out. It comes back by itself, to the same session. */

const WAITS = [250, 500, 1000, 2000, 5000];
const PING_MS = 20000;
const REFUSED = 1008;

export class ChatSocket {
  /**
   * @param {(session: string|null, persona: string) => WebSocket} open
   * @param {(event: object) => void} on the server's events, and {type: 'state', state: 'open'|'closed'}
   */
  constructor(open, on, { later = (work, ms) => setTimeout(work, ms) } = {}) {
    Object.assign(this, { open, on, later });
    this.attempt = 0;
    this.wanted = false;
    this.socket = null;
  }

  /** @param {string|null} session @param {string} persona */
  connect(session, persona) {
    this.session = session;
    this.persona = persona;
    this.wanted = true;
    this.#connect();
  }

  #connect() {
    const socket = this.open(this.session, this.persona);
    this.socket = socket;
    socket.onopen = () => socket === this.socket && this.on({ type: 'state', state: 'open' });
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.attempt = 0;
      const event = JSON.parse(data);
      if (event.type === 'session') this.session = event.session_id;
      if (event.type !== 'pong') this.on(event);
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.socket || !this.wanted) return;
      this.on({ type: 'state', state: 'closed', code, reason });
      if (code === REFUSED) return;
      this.later(() => this.wanted && socket === this.socket && this.#connect(), WAITS[Math.min(this.attempt++, WAITS.length - 1)]);
    };
    this.#ping(socket);
  }

  #ping(socket) {
    this.later(() => {
      if (socket !== this.socket || !this.wanted) return;
      this.say({ type: 'ping' });
      this.#ping(socket);
    }, PING_MS);
  }

  get isOpen() {
    return this.socket?.readyState === 1;
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

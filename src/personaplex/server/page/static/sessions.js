/**
 * Named chats. Their names are kept in this browser; what was said is in this page and on the server, for as long as
 * it keeps it. Pure but for the storage it is given.
 */

const KEY = 'personaplex-chats';
const MOST = 100;

export class Sessions {
  /** @param {Storage} storage */
  constructor(storage) {
    this.storage = storage;
    /** @type {{key: string, id: string|null, name: string, persona: string, at: number}[]} newest first */
    this.all = [];
    /** @type {Map<string, object[]>} what was said, by key */
    this.messages = new Map();
    try {
      this.all = JSON.parse(storage.getItem(KEY) ?? '[]').filter((entry) => entry.key && entry.name);
    } catch {
      this.all = [];
    }
    this.current = this.all[0] ?? null;
  }

  /** A new one, chosen. */
  create(persona, now = Date.now()) {
    const taken = new Set(this.all.map(({ name }) => name));
    let n = this.all.length + 1;
    while (taken.has(`Chat ${n}`)) n++;
    this.current = { key: crypto.randomUUID(), id: null, name: `Chat ${n}`, persona, at: now };
    this.all.unshift(this.current);
    this.all.length = Math.min(this.all.length, MOST);
    this.#keep();
    return this.current;
  }

  choose(key) {
    this.current = this.all.find((entry) => entry.key === key) ?? this.current;
    return this.current;
  }

  /** Change the one that is chosen. @param {{name?: string, persona?: string, id?: string|null}} changes */
  change(changes) {
    if (changes.name !== undefined && !changes.name.trim()) return;
    Object.assign(this.current, changes);
    this.#keep();
  }

  /** Something was said in the one that is chosen: it is the newest now. */
  touch(now = Date.now()) {
    this.current.at = now;
    this.all.sort((a, b) => b.at - a.at);
    this.#keep();
  }

  /** What was said in the one that is chosen. */
  get said() {
    const { key } = this.current;
    if (!this.messages.has(key)) this.messages.set(key, []);
    return this.messages.get(key);
  }

  clear() {
    this.messages.set(this.current.key, []);
  }

  /** Forget the one that is chosen; the newest other is chosen then. */
  remove() {
    this.messages.delete(this.current.key);
    this.all = this.all.filter((entry) => entry !== this.current);
    this.current = this.all[0] ?? null;
    this.#keep();
  }

  #keep() {
    this.storage.setItem(KEY, JSON.stringify(this.all));
  }
}

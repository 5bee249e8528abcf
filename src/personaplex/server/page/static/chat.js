/** The chat: sessions at the side, messages that grow token by token, who answers. */

import { api, openSocket } from './api.js';
import { ChatSocket } from './chat-socket.js';
import { option, title } from './form.js';
import { inBrowser } from './kept.js';
import { Sessions } from './sessions.js';

const element = (id) => document.getElementById(id);

export class Chat {
  constructor() {
    this.sessions = new Sessions(inBrowser);
    this.about = null;
    this.socket = null;
    this.shown = false;
    this.answer = null; // the message that grows
    this.isDue = false; // what is written is to go out as soon as it can
    this.chosen = null; // who is to answer, until the server can be told
    element('composer').addEventListener('submit', (event) => this.#submit(event));
    element('message').addEventListener('input', () => this.#enable());
    element('message').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) this.#submit(event);
    });
    element('session-new').addEventListener('click', () => {
      this.sessions.create(this.sessions.current?.persona ?? this.about.persona);
      this.#enter();
      element('message').focus();
    });
    element('session-clear').addEventListener('click', () => this.#clear());
    element('session-delete').addEventListener('click', () => this.#delete());
    element('session-name').addEventListener('click', () => this.#rename());
    element('rename-cancel').addEventListener('click', () => element('rename').close());
    element('chat-persona').addEventListener('change', ({ target }) => this.#persona(target.value));
  }

  /** @param {object} about see /about */
  fill(about) {
    this.about = about;
    element('chat-persona').replaceChildren(...about.personas.map(({ name }) => option(name, title(name))));
    element('sessions-note').textContent = about.history.kept
      ? 'The server keeps what is said here. Names stay in this browser.'
      : 'Nothing is written down: what is said lives in the server’s memory. Names stay in this browser.';
    const known = about.personas.map(({ name }) => name);
    for (const session of this.sessions.all) if (!known.includes(session.persona)) session.persona = about.persona;
    if (!this.sessions.current) this.sessions.create(about.persona);
    if (this.shown) this.#enter();
  }

  /** The tab is shown for the first time, or again. */
  open() {
    this.shown = true;
    if (this.about && !this.socket) this.#enter();
  }

  #enter() {
    this.socket?.close();
    this.answer = null;
    this.chosen = null;
    const { id, persona, name } = this.sessions.current;
    const open = (query) => openSocket(`/ws/chat?${new URLSearchParams(query)}`, 'chat');
    this.socket = new ChatSocket(open, (event) => this.#hear(event));
    this.socket.connect(id, { persona, title: name });
    element('chat-persona').value = persona;
    this.#drawSessions();
    this.#drawMessages();
  }

  #hear(event) {
    const told = {
      state: ({ state, reason }) => this.#state(state, reason),
      session: (about) => this.#known(about),
      token: ({ token }) => this.#grow(token),
      done: (about) => this.#done(about),
      error: ({ error }) => error.code === 'not_found' || this.#failed(error.message),
    };
    told[event.type]?.(event);
  }

  #state(state, reason) {
    element('chat-state').textContent = state === 'open' ? '' : reason || 'Connecting again…';
    this.#enable();
  }

  /** The server says what it knows: all of it, or that nothing was missed. */
  #known({ session_id: id, persona: before, messages, resumed }) {
    const persona = this.chosen ?? before; // chosen since the server was asked, so the newer of the two
    if (persona !== before) this.socket.say({ type: 'switch_persona', persona });
    this.chosen = null;
    const { said } = this.sessions;
    const lost = this.sessions.current.id !== null && this.sessions.current.id !== id && said.length > 0;
    this.sessions.change({ id, persona });
    element('chat-persona').value = persona;
    element('chat-state').textContent = lost ? 'The server has forgotten what was said' : '';
    if (!resumed && !lost) this.#recall(messages, persona);
    if (this.isDue) this.#send();
  }

  #recall(messages, persona) {
    const { said } = this.sessions;
    const timed = new Map(said.map((message) => [message.text, message]));
    const known = messages.map(({ role, content }) => timed.get(content) ?? { who: role === 'user' ? 'user' : 'agent', text: content, persona });
    said.splice(0, said.length, ...known);
    this.answer = null;
    this.#drawMessages();
    this.#enable();
  }

  #submit(event) {
    event.preventDefault();
    if (this.answer) this.socket?.say({ type: 'cancel' });
    else this.#send();
  }

  /** What is written goes out, or waits until the line stands. */
  #send() {
    const text = element('message').value.trim();
    this.isDue = Boolean(text) && !this.socket?.say({ type: 'message', message: text });
    if (!text || this.isDue) return;
    element('message').value = '';
    this.sessions.said.push({ who: 'user', text });
    this.answer = { who: 'agent', text: '', state: 'thinking', persona: this.sessions.current.persona, began: performance.now(), first: null };
    this.sessions.said.push(this.answer);
    this.sessions.touch();
    this.#drawSessions();
    this.#drawMessages();
    this.#enable();
  }

  #grow(token) {
    if (!this.answer) return;
    this.answer.first ??= performance.now() - this.answer.began;
    this.answer.state = 'streaming';
    this.answer.text += token;
    this.#drawLast();
  }

  #done({ response, cancelled }) {
    if (!this.answer) return;
    this.answer.text = response || 'Nothing was said.';
    this.answer.state = cancelled ? 'done stopped' : 'done';
    this.answer.took = performance.now() - this.answer.began;
    element('chat-said').textContent = this.answer.text; // read out whole, not token by token
    this.#drawLast();
    this.answer = null;
    this.#enable();
  }

  #failed(message) {
    const failed = this.answer ?? { who: 'agent', text: '' };
    if (!this.answer) this.sessions.said.push(failed);
    failed.state = 'failed';
    failed.text = failed.text ? `${failed.text} — ${message}` : message;
    this.answer = null;
    this.#drawMessages();
    this.#enable();
  }

  #clear() {
    this.socket?.say({ type: 'reset' });
    this.answer = null;
    this.sessions.clear();
    this.#drawMessages();
    this.#enable();
    element('message').focus();
  }

  async #delete() {
    const { id } = this.sessions.current;
    this.socket?.close();
    if (id) await api(`/v1/history/${id}`, { method: 'DELETE' }).catch(() => {}); // it may never have been kept
    this.sessions.remove();
    if (!this.sessions.current) this.sessions.create(this.about.persona);
    this.#enter();
  }

  #persona(persona) {
    this.sessions.change({ persona });
    if (!this.socket?.say({ type: 'switch_persona', persona })) this.chosen = persona;
    this.#drawSessions();
  }

  #rename() {
    const dialog = element('rename');
    element('rename-value').value = this.sessions.current.name;
    dialog.onclose = () => {
      if (dialog.returnValue !== 'ok') return;
      this.sessions.change({ name: element('rename-value').value.trim() });
      this.#drawSessions();
      const { id, name } = this.sessions.current;
      // A session in which nothing was said is not in the history yet.
      if (id && this.sessions.said.length) api(`/v1/history/${id}`, { method: 'PATCH', body: JSON.stringify({ title: name }) }).catch(() => {});
    };
    dialog.returnValue = '';
    dialog.showModal();
    element('rename-value').select();
  }

  #enable() {
    const stops = this.answer !== null;
    element('send').disabled = !stops && !element('message').value.trim();
    element('send').setAttribute('aria-label', stops ? 'Stop' : 'Send');
    element('send-icon').setAttribute('d', stops ? 'M7 7h10v10H7z' : 'M12 20V5m0 0l-6 6m6-6l6 6');
  }

  #drawSessions() {
    element('session-name').textContent = this.sessions.current.name;
    element('sessions').replaceChildren(...this.sessions.all.map((session) => this.#entry(session)));
  }

  #entry(session) {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.type = 'button';
    if (session === this.sessions.current) button.setAttribute('aria-current', 'true');
    const name = document.createElement('b');
    name.textContent = session.name;
    const about = document.createElement('small');
    about.textContent = title(session.persona);
    button.append(name, about);
    button.addEventListener('click', () => {
      if (session === this.sessions.current) return;
      this.sessions.choose(session.key);
      this.#enter();
    });
    item.append(button);
    return item;
  }

  #drawMessages() {
    const said = this.sessions.said;
    const log = element('messages');
    log.replaceChildren(...said.map(messageElement));
    if (!said.length) log.append(nothing(title(this.sessions.current.persona)));
    log.scrollTop = log.scrollHeight;
  }

  #drawLast() {
    const log = element('messages');
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    log.lastElementChild?.replaceWith(messageElement(this.sessions.said.at(-1)));
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

function nothing(persona) {
  const words = document.createElement('p');
  words.className = 'empty';
  words.textContent = `Say hello to ${persona}.`;
  return words;
}

function messageElement({ who, text, state = 'done', persona, first, took }) {
  const element = document.createElement('div');
  element.className = `message ${who} ${state}`;
  const words = document.createElement('p');
  if (state === 'thinking') {
    words.append(...[1, 2, 3].map(() => document.createElement('i')));
    words.setAttribute('aria-label', 'Thinking');
  } else {
    words.textContent = text;
  }
  const footer = document.createElement('footer');
  const stopped = state === 'done stopped' ? ['stopped'] : [];
  const times = took === undefined ? [] : [`first word ${seconds(first ?? took)}`, `all ${seconds(took)}`];
  footer.textContent = [who === 'user' ? '' : title(persona ?? ''), ...times, ...stopped].filter(Boolean).join(' · ');
  element.append(words, footer);
  return element;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

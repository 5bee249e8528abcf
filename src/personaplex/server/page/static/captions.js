/**
 * What is said, as lines; the agent's words appear when their sound is heard, not when they arrive. `Captions` is pure;
 * `CaptionsView` puts it on the page.
 */

const PAUSE = 48000; // samples between two pieces that make them two lines: two seconds

export class Captions {
  constructor() {
    /** @type {{who: 'user'|'agent'|'marker', text: string, id: string, latest: string, final: boolean, cut: boolean}[]} */
    this.lines = [];
    /** @type {{text: string, id: string, at: number}[]} */
    this.waiting = [];
    this.lastAt = 0;
    this.version = 0; // grows when a line changes
  }

  /** A piece that the agent's sound reaches at sample `at` of what was played. */
  agent(text, at, id = '') {
    this.waiting.push({ text, at, id });
  }

  /** What the user said, as far as it is understood; a final text replaces what was thought before. */
  user(id, text, final) {
    this.version++;
    let line = this.lines.find((line) => line.who === 'user' && line.id === id);
    if (!line) {
      if (!text.trim()) return;
      this.lines.push((line = { who: 'user', text: '', id, latest: '', final: false, cut: false }));
    }
    line.text = final ? text : line.text + text;
    line.final = final;
    if (final && !text.trim()) this.lines = this.lines.filter((other) => other !== line);
  }

  /** Something that happened to the call. */
  marker(text) {
    this.version++;
    this.lines.push({ who: 'marker', text, id: '', latest: '', final: true, cut: false });
  }

  /** The sound was played up to sample `cursor`. @returns {boolean} whether something changed */
  heard(cursor) {
    let changed = false;
    while (this.waiting.length && this.waiting[0].at <= cursor) {
      this.#say(this.waiting.shift());
      changed = true;
    }
    return changed;
  }

  #say({ text, at, id }) {
    this.version++;
    const last = this.lines.findLast((line) => line.who !== 'marker');
    const goesOn = last?.who === 'agent' && !last.cut && last.id === id && at - this.lastAt < PAUSE;
    this.lastAt = at;
    if (goesOn) {
      last.text += text;
      last.latest = text;
    } else if (text.trim()) {
      this.lines.push({ who: 'agent', text: text.trimStart(), id, latest: text.trimStart(), final: false, cut: false });
    }
  }

  /** What the agent was saying was taken back: words that were not heard are not shown. @param {boolean} aloud it spoke */
  cut(aloud) {
    this.version++;
    const last = this.lines.findLast((line) => line.who === 'agent');
    if (last && (aloud || this.waiting.length)) last.cut = true;
    this.waiting = [];
  }

  /** The call is over: everything is shown. */
  finish() {
    this.heard(Infinity);
  }

  /** As text, to copy. @param {string} agent its name */
  text(agent) {
    const names = { user: 'You: ', agent: `${agent}: `, marker: '' };
    return this.lines.map((line) => names[line.who] + line.text.trim() + (line.cut ? ' —' : '')).join('\n');
  }
}

export class CaptionsView {
  /** @param {HTMLElement} log @param {HTMLElement} empty what stands there before the first line */
  constructor(log, empty) {
    this.log = log;
    this.empty = empty;
    this.drawn = [];
    this.shown = null;
    this.version = 0;
  }

  /** @param {Captions} captions @param {string} agent its name */
  draw(captions, agent) {
    if (this.shown === captions && this.version === captions.version) return;
    this.shown = captions;
    this.version = captions.version;
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    this.empty.hidden = captions.lines.length > 0;
    while (this.drawn.length > captions.lines.length) this.drawn.pop().element.remove();
    captions.lines.forEach((line, i) => {
      const key = `${line.who}|${line.text}|${line.latest}|${line.final}|${line.cut}`;
      if (this.drawn[i]?.key === key) return;
      const element = lineElement(line, agent);
      if (this.drawn[i]) this.drawn[i].element.replaceWith(element);
      else this.log.append(element);
      this.drawn[i] = { key, element };
    });
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}

function lineElement(line, agent) {
  const element = document.createElement(line.who === 'marker' ? 'p' : 'div');
  if (line.who === 'marker') {
    element.className = 'marker';
    element.textContent = line.text;
    return element;
  }
  element.className = `line ${line.who}${line.cut ? ' cut' : ''}${line.who === 'user' && !line.final ? ' tentative' : ''}`;
  const name = document.createElement('b');
  name.textContent = line.who === 'user' ? 'You' : agent;
  const words = document.createElement('p');
  const before = line.latest ? line.text.slice(0, line.text.length - line.latest.length) : line.text;
  words.append(before);
  if (line.latest) {
    const latest = document.createElement('span');
    latest.className = 'latest';
    latest.textContent = line.latest;
    words.append(latest);
  }
  element.append(name, words);
  return element;
}

/** What a call is to be: the form beside the dial, filled from the server, remembered in this browser. */

import { api } from './api.js';
import { inBrowser } from './kept.js';

const KEY = 'personaplex-call';
const NUMBERS = ['text_temperature', 'text_top_k', 'audio_temperature', 'audio_top_k', 'repetition_penalty'];
const KEPT = ['persona', 'voice', 'role', ...NUMBERS, 'seed', 'steps', 'silence'];

const element = (id) => document.getElementById(id);

export class CallForm {
  /** `changed` is called with the name of what a person changed. @param {(name: string) => void} changed */
  constructor(changed) {
    this.form = element('settings');
    this.about = null;
    this.counting = 0;
    this.form.addEventListener('submit', (event) => event.preventDefault());
    this.form.addEventListener('input', ({ target }) => {
      if (target.id === 'persona') this.#adopt();
      if (target.name === 'backend') this.#offerVoices();
      if (target.id === 'role') this.#count();
      this.#keep();
      changed(target.id || target.name);
    });
  }

  /** Offer what the server has. @param {object} about see /about */
  fill(about) {
    this.about = about;
    element('backends').hidden = about.modes.length < 2;
    for (const mode of ['duplex', 'cascade']) {
      const choice = this.form.querySelector(`[name="backend"][value="${mode}"]`);
      choice.disabled = !about.modes.includes(mode);
      if (about.modes[0] === mode) choice.checked = true;
    }
    element('persona').replaceChildren(...about.personas.map(({ name }) => option(name, title(name))), option('', 'None: my own words'));
    element('persona').value = about.persona;
    element('role').disabled = !about.takes_prompts && about.modes.length < 2;
    for (const name of NUMBERS) element(name).placeholder = about.sampling[name];
    this.#adopt();
    this.#restore();
    this.#offerVoices();
    this.#count();
  }

  /** 'duplex' or 'cascade': what hears and speaks. */
  get backend() {
    return this.form.elements.backend.value;
  }

  /** Whether it goes by turns. */
  get inTurns() {
    return this.form.elements.manner.value === 'turns';
  }

  /** @returns {'speakers'|'headphones'} */
  get ears() {
    return this.form.elements.ears.value;
  }

  /** Whether the microphone is shut while the agent speaks. */
  get guard() {
    return element('guard').checked && this.ears === 'speakers';
  }

  /** Whom the captions call the agent. */
  get agentName() {
    return title(element('persona').value) || 'Agent';
  }

  /** For `Turns`. */
  get turns() {
    return { steps: number('steps') ?? 75, silence: 1000 * (number('silence') ?? 1) };
  }

  /** Lock what cannot change during a call. @param {boolean} on */
  lock(on) {
    for (const id of ['persona', 'voice', 'role', 'seed', ...NUMBERS]) element(id).disabled = on;
    for (const choice of this.form.elements.backend) choice.disabled = on || !this.about.modes.includes(choice.value);
    if (!on) element('role').disabled = !this.about.takes_prompts && this.backend === 'duplex';
  }

  /** What `session.update` says: names that are empty are left to the server. */
  session() {
    const persona = element('persona').value;
    const role = element('role').value.trim();
    const own = this.about.personas.find(({ name }) => name === persona);
    const names = this.backend === 'duplex' ? NUMBERS : ['text_temperature']; // a language model has no other
    const sampling = Object.fromEntries(names.map((name) => [name, number(name)]).filter(([, value]) => value !== null));
    const format = { type: 'audio/pcm', rate: 24000 };
    return {
      type: 'realtime',
      output_modalities: ['audio'],
      ...(persona && { persona }),
      ...(role !== (own?.prompt ?? null) && { instructions: role }),
      ...(Object.keys(sampling).length && { sampling }),
      ...(number('seed') !== null && { seed: number('seed') }),
      audio: {
        input: { format, ...(this.backend === 'cascade' && { transcription: {} }) },
        output: { format, ...(element('voice').value && { voice: element('voice').value }) },
      },
    };
  }

  #adopt() {
    const persona = this.about.personas.find(({ name }) => name === element('persona').value);
    if (persona) element('role').value = persona.prompt;
    if (persona && persona.voices.some((voice) => this.about.voices.duplex.includes(voice))) {
      element('voice').value = persona.voices.find((voice) => this.about.voices.duplex.includes(voice));
    }
    this.#count();
  }

  #offerVoices() {
    const chosen = element('voice').value;
    const voices = this.about.voices[this.backend] ?? [];
    element('voice').replaceChildren(option('', 'Its own'), ...groups(voices));
    if (voices.includes(chosen)) element('voice').value = chosen;
  }

  #count() {
    clearTimeout(this.counting);
    const text = element('role').value;
    this.counting = setTimeout(async () => {
      const { tokens, most } = await api('/about/role', { method: 'POST', body: JSON.stringify({ text }) }).catch(() => ({}));
      if (element('role').value !== text) return;
      const output = element('tokens');
      output.textContent = tokens === undefined || tokens === null ? `${text.length} characters` : `${tokens} token${tokens === 1 ? '' : 's'}`;
      output.title = most ? `Each is one of ${most} frames that the model remembers` : '';
      output.dataset.grade = most && tokens > most / 2 ? 'poor' : 'good';
    }, 250);
  }

  #keep() {
    const manner = Object.fromEntries(['manner', 'ears'].map((name) => [name, this.form.elements[name].value]));
    const values = Object.fromEntries(KEPT.map((id) => [id, element(id).value]));
    inBrowser.setItem(KEY, JSON.stringify({ ...values, ...manner, guard: element('guard').checked }));
  }

  #restore() {
    let kept;
    try {
      kept = JSON.parse(inBrowser.getItem(KEY) ?? '{}');
    } catch {
      return;
    }
    const personas = this.about.personas.map(({ name }) => name);
    if (kept.persona !== undefined && kept.persona !== '' && !personas.includes(kept.persona)) return;
    this.#offerVoices();
    for (const id of KEPT) if (kept[id] !== undefined) element(id).value = kept[id];
    for (const name of ['manner', 'ears']) if (kept[name]) this.form.elements[name].value = kept[name];
    element('guard').checked = kept.guard ?? false;
  }
}

/** A persona's name as a person reads it. @param {string} name */
export function title(name) {
  return name.split(/[-_]/).map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join(' ');
}

const FAMILIES = { NATF: 'Natural, female', NATM: 'Natural, male', VARF: 'Varied, female', VARM: 'Varied, male' };

function groups(voices) {
  const found = Object.groupBy(voices, (voice) => FAMILIES[voice.slice(0, 4)] ?? 'Voices');
  return Object.entries(found).map(([name, members]) => {
    const group = document.createElement('optgroup');
    group.label = name;
    group.append(...members.map((voice) => option(voice, voice)));
    return group;
  });
}

export function option(value, text) {
  const element = document.createElement('option');
  element.value = value;
  element.textContent = text;
  return element;
}

function number(id) {
  const { value } = element(id);
  return value === '' || !Number.isFinite(Number(value)) ? null : Number(value);
}

/** The page put together: what the server has, the two ways to talk, the token. */

import { api, remember, token } from './api.js';
import { Call } from './call.js';
import { Chat } from './chat.js';
import { CallForm } from './form.js';
import { theme } from './theme.js';

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const form = new CallForm((name) => call.changed(name));
const call = new Call(form, askToken);
const chat = new Chat();

theme(element('theme'), () => call.dial.request());
tabs();
if (matchMedia('(max-width: 46rem)').matches) element('setup').open = false;
begin();

/** Ask the server what it has, until it tells: it may be loading, and it may want a token. */
async function begin() {
  for (;;) {
    try {
      show(await api('/about'));
      call.trouble(null);
      return;
    } catch (error) {
      if (error.code === 'invalid_api_key') await askToken();
      else if (error.code === 'unavailable') element('status').textContent = 'The server is loading its model…';
      else call.trouble(error.code || 'unreachable', error.message);
      if (error.code !== 'invalid_api_key') await pause(1000);
    }
  }
}

function show(about) {
  element('model').textContent = about.model.split('/').pop();
  element('privacy').textContent = privacy(about.history);
  form.fill(about);
  call.allow();
  chat.fill(about);
  if (matchMedia('(max-width: 46rem)').matches) document.querySelector('main').append(element('privacy'));
}

function privacy({ kept, days }) {
  if (!kept) return 'Nothing is written down: what is said is in memory only, until the server stops.';
  return days ? `This server keeps transcripts for ${days} days.` : 'This server keeps transcripts.';
}

/** Resolves when a token was given. */
function askToken() {
  const dialog = element('key');
  element('key-title').textContent = token() ? 'That is not this server’s token' : 'This server asks for a token';
  return new Promise((done) => {
    dialog.onclose = () => {
      if (element('key-value').value) remember(element('key-value').value.trim());
      element('key-value').value = '';
      done();
      if (element('connect').disabled === false) call.trouble(null);
    };
    dialog.oncancel = (event) => event.preventDefault();
    if (!dialog.open) dialog.showModal();
  });
}

function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')];
  const select = (tab) => {
    for (const other of all) {
      const on = other === tab;
      other.setAttribute('aria-selected', on);
      other.tabIndex = on ? 0 : -1;
      element(other.getAttribute('aria-controls')).hidden = !on;
    }
    history.replaceState(null, '', tab.id === 'tab-chat' ? '#chat' : location.pathname + location.search);
    if (tab.id === 'tab-chat') chat.open();
    else call.dial.request();
  };
  for (const tab of all) {
    tab.addEventListener('click', () => select(tab));
    tab.addEventListener('keydown', ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = all[(all.indexOf(tab) + step + all.length) % all.length];
      next.focus();
      select(next);
    });
  }
  select(element(location.hash === '#chat' ? 'tab-chat' : 'tab-call'));
}

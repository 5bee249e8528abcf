/** Colours: the system's, light, or dark; the choice stays in this browser. */

import { inBrowser } from './kept.js';

const NAMES = { system: 'as the system', light: 'light', dark: 'dark' };
const KEY = 'personaplex-colours';

/** @param {HTMLElement} button goes from one to the next @param {() => void} changed */
export function theme(button, changed) {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  let choice = inBrowser.getItem(KEY) ?? 'system';

  function apply() {
    if (choice === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.setAttribute('aria-label', `Colours: ${NAMES[choice]}`);
    button.title = `Colours: ${NAMES[choice]}`;
    changed();
  }

  button.addEventListener('click', () => {
    const order = dark.matches ? ['system', 'light', 'dark'] : ['system', 'dark', 'light'];
    choice = order[(order.indexOf(choice) + 1) % 3];
    inBrowser.setItem(KEY, choice);
    apply();
  });
  dark.addEventListener('change', apply);
  apply();
}

/** What went wrong, in words: what happened, and what to do. Pure. `action` is what the button under it says. */

const WORDS = {
  insecure: {
    title: 'The browser keeps the microphone from this page',
    text: 'It is given only to pages over https, or from this very machine. Open http://localhost instead, or start the server with --self-signed, or with --tls and a certificate.',
  },
  NotAllowedError: {
    title: 'The microphone was not allowed',
    text: 'Click the symbol beside the address, allow the microphone for this page, and try again. On a phone the system’s settings must allow the browser, too.',
    action: 'Try again',
  },
  NotFoundError: {
    title: 'There is no microphone',
    text: 'Plug one in, or connect a headset; then try again.',
    action: 'Try again',
  },
  NotReadableError: {
    title: 'The microphone is taken',
    text: 'Another program uses it, or the system does not let it go. Close that program, and try again.',
    action: 'Try again',
  },
  unplugged: {
    title: 'The microphone is gone',
    text: 'It was unplugged or taken by another program. The call goes on without it; choose another and connect again.',
    action: 'Connect again',
  },
  resource_exhausted: {
    title: 'All lines are taken',
    text: 'This server holds only so many conversations at once, and none is free.',
    action: 'Try again',
  },
  unavailable: {
    title: 'The server is not ready',
    text: 'It is loading its model, or about to stop.',
    action: 'Try again',
  },
  invalid_api_key: {
    title: 'The token is not right',
    text: 'Whoever started the server has it: it was given with --token.',
    action: 'Give the token',
  },
  foreign_origin: {
    title: 'This address may not be used',
    text: 'The server takes only calls from pages of its own. Whoever started it can allow this address with --origin.',
  },
  unreachable: {
    title: 'The server does not answer',
    text: 'It was stopped, or the network is gone. What was said so far stays here.',
    action: 'Try again',
  },
  lost: {
    title: 'The connection was lost',
    text: 'It could not be taken up again in time, so the conversation has ended. What was said so far stays here.',
    action: 'New call',
  },
  closed: {
    title: 'The server ended the call',
    text: 'What was said so far stays here.',
    action: 'New call',
  },
  failed: {
    title: 'Something went wrong on the server',
    text: 'Its log says what. What was said so far stays here.',
    action: 'New call',
  },
  sound: {
    title: 'This browser cannot play or record here',
    text: 'It needs AudioWorklet: any Chromium, Firefox or Safari of the last years has it.',
  },
};

/**
 * @param {string} code one of the above, a DOMException's name, or the server's
 * @param {string} [message] the server's own words, which come first
 */
export function explain(code, message = '') {
  const known = WORDS[code];
  const said = message ? `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? '' : '.'}` : '';
  if (!known) return { title: 'That did not work', text: said || `The reason is not known (${code}).`, action: 'Try again' };
  const ours = code === 'resource_exhausted' || code === 'unavailable';
  return { action: '', ...known, text: ours && said ? said : known.text };
}

/** Why this page cannot have a microphone at all, or null. @param {{isSecureContext: boolean, navigator: Navigator}} window */
export function obstacle(window) {
  if (!window.isSecureContext || !window.navigator.mediaDevices) return 'insecure';
  return 'AudioWorkletNode' in window ? null : 'sound';
}

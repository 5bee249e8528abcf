/** The server's HTTP, and the token it may want: from the address, or asked for; it stays in this tab. */

import { credentials } from './credentials.js';
import { inTab } from './kept.js';

const KEY = 'personaplex-token';

/** The token that this tab knows, or an empty text. In the address it is seen once, and taken out of it. */
export function token() {
  const address = new URL(location.href);
  const given = address.searchParams.get('token');
  if (given !== null) {
    inTab.setItem(KEY, given);
    address.searchParams.delete('token');
    history.replaceState(null, '', address);
  }
  return inTab.getItem(KEY) ?? '';
}

/** @param {string} value */
export function remember(value) {
  inTab.setItem(KEY, value);
}

/** What went wrong with a request: `code` is the server's, or `unreachable`. */
export class ApiError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** JSON of the server, or ApiError. @param {string} path @param {RequestInit} [options] */
export async function api(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (options.body) headers['Content-Type'] = 'application/json';
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError('unreachable', 'The server does not answer.');
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const { code = '', message = answer.statusText } = body.error ?? {};
  throw new ApiError(code, message, answer.status);
}

/** A WebSocket of the same server. @param {string} path @param {string} protocol */
export function openSocket(path, protocol) {
  const shown = credentials(token(), path, [protocol]);
  const address = new URL(shown.path, location.href);
  address.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
  return new WebSocket(address, shown.protocols);
}

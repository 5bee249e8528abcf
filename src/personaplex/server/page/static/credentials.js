/** How a browser shows a token to a WebSocket, which it cannot give headers: as a subprotocol, as OpenAI's clients do. */

const PREFIX = 'openai-insecure-api-key.';
const NAME = /^[\w!#$%&'*+.^`|~-]+$/; // what the name of a subprotocol may consist of; RFC 9110, token

/**
 * Of a token with other characters in it (`/`, `=`) there is only the address left.
 * @param {string} token empty for none @param {string} path @param {string[]} names of subprotocols
 * @returns {{path: string, protocols: string[]}}
 */
export function credentials(token, path, names) {
  if (!token) return { path, protocols: names };
  if (NAME.test(token)) return { path, protocols: [...names, PREFIX + token] };
  const joint = path.includes('?') ? '&' : '?';
  return { path: `${path}${joint}token=${encodeURIComponent(token)}`, protocols: names };
}

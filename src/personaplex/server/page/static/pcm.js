/** Sound as numbers: floats in [-1, 1], 16-bit integers, and base64 of those, as the protocol wants it. */

/** @param {Float32Array} pcm @returns {Int16Array} beyond full scale it is cut */
export function toInt16(pcm) {
  return Int16Array.from(pcm, (x) => Math.round(Math.max(-1, Math.min(1, x)) * 32767));
}

/** @param {Float32Array} pcm @returns {string} 16 bits, little end first */
export function toBase64(pcm) {
  const view = new DataView(new ArrayBuffer(2 * pcm.length));
  toInt16(pcm).forEach((x, i) => view.setInt16(2 * i, x, true));
  return btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
}

/** @param {string} text @returns {Float32Array} */
export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
}

/** Root mean square. @param {Float32Array} pcm */
export function rms(pcm) {
  let sum = 0;
  for (const x of pcm) sum += x * x;
  return Math.sqrt(sum / Math.max(1, pcm.length));
}

/** Loudness as a meter shows it: 0 at -60 dB and below, 1 at full scale. @param {number} value root mean square */
export function loudness(value) {
  return Math.max(0, Math.min(1, 1 + (20 * Math.log10(value + 1e-9)) / 60));
}

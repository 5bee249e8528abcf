/** What the big button and the line under it say, for each moment of a call. Pure. */

const CALL = 'M6.5 3.5h3l1.5 4-2 1.6a12 12 0 0 0 5.9 5.9l1.6-2 4 1.5v3a2 2 0 0 1-2.2 2A17 17 0 0 1 4.5 5.7a2 2 0 0 1 2-2.2z';
const END = 'M6 6l12 12M18 6L6 18';
const MIC = 'M12 3.5a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0v-5a3 3 0 0 1 3-3zM5.5 11.5a6.5 6.5 0 0 0 13 0M12 18v3';
const WAVE = 'M5 10v4M9 7v10M13 4v16M17 8v8M21 11v2';

const TURNS = {
  resting: { icon: MIC, label: 'Tap to talk', status: 'Resting. Tap when you want to say something.' },
  listening: { icon: WAVE, label: 'Listening', status: 'Your turn. Silence ends it; a tap rests.' },
  answering: { icon: WAVE, label: 'Answering', status: 'It answers. A tap cuts it short.' },
};

/**
 * @param {{state: string, turn: string|null, muted: boolean, before: boolean}} call its state as in realtime.js, `none`
 *   between calls and `loading` before the first can be made; whose turn it is; whether there was a call before
 * @returns {{icon: string, label: string, status: string}} `icon` is a path in 24 by 24
 */
export function face({ state, turn, muted, before }) {
  switch (state) {
    case 'loading':
      return { icon: CALL, label: 'Loading', status: 'Looking for the server…' };
    case 'none':
      return { icon: CALL, label: before ? 'Call again' : 'Connect', status: before ? 'The call has ended.' : 'Connect, and talk.' };
    case 'resuming':
      return { icon: END, label: 'Hang up', status: 'The connection broke. Coming back…' };
    case 'live': {
      const shown = turn ? TURNS[turn] : { icon: END, label: 'Hang up', status: 'Connected. Just talk.' };
      return muted && turn !== 'answering' ? { ...shown, status: 'You are muted.' } : shown;
    }
    default:
      return { icon: END, label: 'Cancel', status: state === 'preparing' ? 'Reading voice and role…' : 'Connecting…' };
  }
}

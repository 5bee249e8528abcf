"""The playout buffer: when it plays, when it grows and shrinks, what it sheds."""

from __future__ import annotations

import numpy as np

from personaplex.live.playout import FEWEST_FRAMES, MOST_FRAMES, STEADY_FRAMES, Playout
from personaplex.units import FRAME_SAMPLES

LOUD = np.full(FRAME_SAMPLES, 0.1, np.float32)
QUIET = np.zeros(FRAME_SAMPLES, np.float32)


def filled(n_frames: int = FEWEST_FRAMES) -> Playout:
    playout = Playout()
    for _ in range(n_frames):
        playout.push(LOUD)
    return playout


def test_it_waits_for_three_frames_and_then_plays_in_blocks_of_any_size() -> None:
    playout = filled(2)
    assert not playout.pull(480).any() and playout.waiting == 2 * FRAME_SAMPLES
    sound = np.linspace(-1, 1, FRAME_SAMPLES, dtype=np.float32)
    playout.push(sound)
    heard = np.concatenate([playout.pull(n) for n in (1, 479, 2400, 2880)])
    assert np.array_equal(heard, np.concatenate([LOUD, LOUD, sound])) and playout.gaps == 0


def test_a_gap_makes_it_deeper_and_time_shallower_again() -> None:
    playout = filled()
    playout.pull(4 * FRAME_SAMPLES)
    assert (playout.gaps, playout.depth) == (1, FEWEST_FRAMES + 1)
    playout.push(LOUD)
    assert not playout.pull(FRAME_SAMPLES).any(), "after a gap it fills up before it plays"
    for _ in range(FEWEST_FRAMES):
        playout.push(LOUD)
    for _ in range(STEADY_FRAMES):
        assert playout.pull(FRAME_SAMPLES).all()
        playout.push(LOUD)
    assert playout.depth == FEWEST_FRAMES and playout.waiting == (FEWEST_FRAMES + 1) * FRAME_SAMPLES
    playout.push(QUIET)
    playout.pull(FRAME_SAMPLES)
    playout.push(QUIET)
    assert playout.shed == 2 and playout.waiting == FEWEST_FRAMES * FRAME_SAMPLES, "the excess went where it was silent"


def test_it_never_grows_without_bound() -> None:
    playout = filled()
    for _ in range(40):
        playout.pull((playout.depth + 1) * FRAME_SAMPLES)
        for _ in range(playout.depth):
            playout.push(LOUD)
    assert playout.depth == MOST_FRAMES
    for _ in range(100):
        playout.push(LOUD)
    assert playout.waiting <= (MOST_FRAMES + 26) * FRAME_SAMPLES and playout.shed > 50


def test_the_end_of_an_answer_is_no_gap() -> None:
    playout = filled(1)
    playout.drain()
    assert playout.pull(FRAME_SAMPLES).all() and not playout.pull(FRAME_SAMPLES).any()
    assert (playout.gaps, playout.depth) == (0, FEWEST_FRAMES)
    playout.push(LOUD)
    assert not playout.pull(FRAME_SAMPLES).any(), "the next answer fills up first"


def test_what_is_cut_off_is_not_played() -> None:
    playout = filled()
    playout.pull(480)
    playout.clear()
    assert not playout.pull(FRAME_SAMPLES).any() and (playout.waiting, playout.gaps) == (0, 0)


def test_how_far_ahead_the_last_frame_is_told_before_playing_begins() -> None:
    """Each of the first frames is played three after it was pushed, whether the speaker has begun or not."""
    playout = Playout()
    for n in range(6):
        playout.push(np.full(FRAME_SAMPLES, n + 1, np.float32) / 10)
        assert playout.ahead == 2 * FRAME_SAMPLES, n
        playout.pull(FRAME_SAMPLES)
    playout.pull(3 * FRAME_SAMPLES)  # dry: a frame deeper, from the beginning
    playout.push(np.ones(FRAME_SAMPLES, np.float32))
    assert playout.ahead == 3 * FRAME_SAMPLES
    playout.drain()
    assert playout.ahead == 0

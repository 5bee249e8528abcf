"""A recogniser that knows every answer but not the question: what an answer sounds like to somebody else.

PocketSphinx with its own acoustic model and one grammar for the whole test. Beside the answers the grammar has
garbage, a loop over all phones that anything may be, so that sound which is no answer is not forced to be one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soxr

from personaplex.errors import BackendError
from personaplex.speech import HELDOUT, PHONES, say
from personaplex.units import SAMPLE_RATE

if TYPE_CHECKING:
    from pocketsphinx import Decoder

RATE = 16_000
PADDING_SECONDS = 0.3
DITHER_DB = -80.0
"""Level of the noise that keeps digital silence, which the recogniser cannot bear, from being digital."""

BEAMS = {"beam": 1e-40, "wbeam": 1e-20, "pbeam": 1e-40}
GARBAGE_START, GARBAGE_PHONE = 1e-8, 0.01
"""How likely garbage is to begin, and each of its phones: answers' words count as certain."""

_PHONES = [phone.upper() for phone in PHONES if phone not in ("sil", "ax")]
_GARBAGE = {f"xx{phone.lower()}": phone for phone in _PHONES}


def pronunciation(word: str) -> str:
    """Phones (ARPAbet, spaces between) of a word that the recogniser's dictionary lacks, as a synthesiser says it."""
    phones = [phone.label.upper() for phone in say(HELDOUT["awb"], word).phones if phone.label != "sil"]
    return " ".join("AH" if phone == "AX" else phone for phone in phones)


class Network(NamedTuple):
    """What may be heard: arcs (from, to, word) between numbered states, from state 0 to state `final`."""

    arcs: list[tuple[int, int, str]]
    final: int


def network(grammar: str) -> Network:
    """The network of a JSGF grammar made of alternatives, words and rules only; its one public rule is heard.

    PocketSphinx compiles such a grammar itself, but with empty arcs that make thousands of names take minutes: here
    there are none, and answers that begin alike share their beginning. Raises ValueError without a public rule.
    """
    rules: dict[str, list[list[str]]] = {}
    public = None
    for rule in re.findall(r"(?:public\s+)?<[^>]+>\s*=[^;]*", grammar):
        head, body = rule.split("=", 1)
        name = head[head.index("<") : head.index(">") + 1]
        public = name if "public" in head else public
        rules[name] = [alternative.split() for alternative in body.split("|")]
    if public is None:
        raise ValueError("the grammar has no public rule")
    arcs: dict[int, dict[str, set[int]]] = {}
    n_states = 2  # 0 is the start, 1 the end

    def add(name: str, start: int, end: int) -> None:
        nonlocal n_states
        for symbols in rules[name]:
            at = start
            for i, symbol in enumerate(symbols):
                to = end if i == len(symbols) - 1 else n_states
                n_states += to == n_states
                if symbol.startswith("<"):
                    add(symbol, at, to)
                else:
                    arcs.setdefault(at, {}).setdefault(symbol, set()).add(to)
                at = to

    add(public, 0, 1)
    return _determined(arcs)


def _determined(arcs: dict[int, dict[str, set[int]]]) -> Network:
    """The network in which each word leads from a state to one other: sets of states become states."""
    numbers = {frozenset([0]): 0}
    waiting, made, ends = [frozenset([0])], [], []
    while waiting:
        states = waiting.pop()
        if 1 in states:
            ends.append(numbers[states])
        following: dict[str, set[int]] = {}
        for state in states:
            for word, to in arcs.get(state, {}).items():
                following.setdefault(word, set()).update(to)
        for word, targets in following.items():
            to_states = frozenset(targets)
            if to_states not in numbers:
                numbers[to_states] = len(numbers)
                waiting.append(to_states)
            made.append((numbers[states], numbers[to_states], word))
    final = len(numbers)
    return Network([*made, *((end, final, "") for end in ends)], final)


def word_loop(words: Sequence[str]) -> Network:
    """Any number of `words` in any order."""
    return Network([*((0, 1, word) for word in words), *((1, 1, word) for word in words), (1, 2, "")], 2)


class Recogniser:
    """Hears one recording at a time; what it hears depends on that recording alone.

    Raises BackendError when PocketSphinx is not installed.
    """

    def __init__(self, heard: Network) -> None:
        try:
            from pocketsphinx import Decoder, get_model_path
        except ImportError as error:
            raise BackendError(
                "the recogniser is not installed; `pip install pocketsphinx` (or personaplex-mlx[evaluate])"
            ) from error
        model = Path(get_model_path("en-us"))
        self._decoder: Decoder = Decoder(
            hmm=str(model / "en-us"),
            dict=str(model / "cmudict-en-us.dict"),
            lm=None,
            loglevel="FATAL",
            cmn="batch",
            **BEAMS,
        )
        for word, phone in _GARBAGE.items():
            self._decoder.add_word(word, phone, False)
        for word in {word for _, _, word in heard.arcs if word}:
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, pronunciation(word), False)
        garbage = heard.final + 1
        arcs: list[tuple[int, int, float] | tuple[int, int, float, str]] = [
            (start, to, 1.0, word) if word else (start, to, 1.0) for start, to, word in heard.arcs
        ]
        arcs += [(0, garbage, GARBAGE_START, word) for word in _GARBAGE]
        arcs += [(garbage, garbage, GARBAGE_PHONE, word) for word in _GARBAGE]
        arcs.append((garbage, heard.final, 1.0))
        self._decoder.add_fsg("answers", self._decoder.create_fsg("answers", 0, heard.final, arcs))
        self._decoder.activate_search("answers")

    def hear(self, pcm: np.ndarray) -> list[str]:
        """Samples [S] at 24 kHz -> the words heard; none for garbage."""
        sound = soxr.resample(np.asarray(pcm, np.float32), SAMPLE_RATE, RATE)
        sound = np.pad(sound, round(PADDING_SECONDS * RATE))
        sound += np.random.default_rng(0).normal(0, 10 ** (DITHER_DB / 20), len(sound))
        samples = np.rint(32767 * np.clip(sound, -1, 1)).astype("<i2")
        self._decoder.reinit_feat()  # or what was heard before would colour this: the front end adapts
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), False, True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return [w for w in heard.hypstr.split() if w not in _GARBAGE] if heard is not None else []


def hear_all(recordings: Sequence[np.ndarray], heard: Network, *, processes: int = 0) -> list[list[str]]:
    """What is heard in each recording [S] (24 kHz, float32 or int16), by `processes` at once (0: one a core)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processes or cores, len(recordings))
    if processes <= 1:
        _start(heard)
        return [_hear(pcm) for pcm in recordings]
    with multiprocessing.get_context("spawn").Pool(processes, _start, (heard,)) as pool:
        return pool.map(_hear, recordings, chunksize=4)


_recogniser: list[Recogniser] = []
"""The one of this process: a decoder cannot be sent to another."""


def _start(heard: Network) -> None:
    _recogniser[:] = [Recogniser(heard)]


def _hear(pcm: np.ndarray) -> list[str]:
    return _recogniser[0].hear(pcm.astype(np.float32) / 32768 if pcm.dtype == np.int16 else pcm)

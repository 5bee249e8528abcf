"""Synthesised speech: its events, its speakers, and what is done to it."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from personaplex.errors import SynthesisError
from personaplex.speech import (
    AGENTS,
    HELDOUT,
    PHONES,
    Speaker,
    Utterance,
    degrade,
    espeak,
    flite,
    library,
    noise,
    say,
    sound,
    user_speaker,
)
from personaplex.speech.identity import NearestVoice, embedding, pitch
from personaplex.speech.phones import label
from personaplex.units import SAMPLE_RATE

KAL = Speaker("kal16", "flite", "kal16", 95.0)
ESPEAK = Speaker("espeak", "espeak", "en-us+f2", 1.0)
LINES = (
    "um what's the price of a cup of coffee",
    "in the middle of the night i am on a boat",
    "spell cat c a t",
    "do you open at ten o'clock on the first of may",
)


def engine_is_missing(module: object) -> bool:
    try:
        getattr(module, "_library" if module is flite else "_engine")()
    except SynthesisError:
        return True
    return False


needs_flite = pytest.mark.skipif(engine_is_missing(flite), reason="flite is not installed: apt-get install libflite1")
needs_espeak = pytest.mark.skipif(
    engine_is_missing(espeak), reason="espeak-ng is not installed: apt-get install libespeak-ng1 espeak-ng-data"
)
ENGINES = [pytest.param(KAL, marks=needs_flite), pytest.param(ESPEAK, marks=needs_espeak)]


def check_events(said: Utterance, text: str) -> None:
    assert [word.text for word in said.words] == text.split()
    assert said.pcm.dtype == np.float32 and np.isfinite(said.pcm).all() and np.abs(said.pcm).max() <= 1
    ends = 0
    for word in said.words:
        assert ends <= word.start < word.end <= len(said.pcm), (word, text)
        ends = word.end
    assert said.phones[0].start == 0 and said.phones[-1].end == len(said.pcm)
    for before, after in zip(said.phones, said.phones[1:], strict=False):
        assert before.end == after.start
    assert {phone.label for phone in said.phones} <= set(PHONES)


@pytest.mark.parametrize("speaker", ENGINES)
@pytest.mark.parametrize("text", LINES)
def test_every_word_and_phone_has_its_place(speaker: Speaker, text: str) -> None:
    check_events(say(speaker, text), text)


@pytest.mark.parametrize("speaker", ENGINES)
def test_speech_is_trimmed_and_level(speaker: Speaker) -> None:
    said = say(speaker, LINES[0])
    assert said.words[0].start == 720 and len(said.pcm) - said.words[-1].end == 720
    loud = said.pcm[said.words[0].start : said.words[-1].end]
    assert -27 < 10 * np.log10(np.mean(np.square(loud))) < -21


@pytest.mark.parametrize("speaker", ENGINES)
def test_a_letter_is_said_as_a_letter(speaker: Speaker) -> None:
    said = say(speaker, "spell c a t")
    letters = [p.label for p in said.phones if p.label != "sil" and p.start >= said.words[1].start - 2]
    assert letters == ["s", "iy", "ey", "t", "iy"]


@needs_flite
@pytest.mark.parametrize("voice", ["kal16", "slt", "rms"])
def test_flite_says_the_same_every_time(voice: str) -> None:
    speaker = replace(KAL, voice=voice)
    first = say(speaker, LINES[0])
    say(replace(speaker, pitch=150.0, rate=1.2), LINES[1])
    np.testing.assert_array_equal(first.pcm, say(speaker, LINES[0]).pcm)


@needs_espeak
def test_espeak_says_nearly_the_same_every_time() -> None:
    """Its flutter runs on from one text to the next."""
    first, again = (say(ESPEAK, LINES[0]) for _ in range(2))
    assert abs(len(first.pcm) - len(again.pcm)) < 0.08 * len(first.pcm)
    assert [p.label for p in first.phones] == [p.label for p in again.phones]


@pytest.mark.parametrize("speaker", ENGINES)
def test_formant_moves_the_spectrum_and_not_the_length(speaker: Speaker) -> None:
    def centroid(pcm: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(pcm)) ** 2
        return float(np.sum(power * np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)) / power.sum())

    small, large = (say(replace(speaker, formant=formant), LINES[0]) for formant in (0.85, 1.2))
    assert 0.9 < len(small.pcm) / len(large.pcm) < 1.1
    assert centroid(large.pcm) > 1.15 * centroid(small.pcm)
    assert pitch(large.pcm) == pytest.approx(pitch(small.pcm), rel=0.15)


@pytest.mark.parametrize("text", ["", "price 5", "hello, you", "Hello", "'"])
def test_a_text_that_cannot_be_said_is_an_error(text: str) -> None:
    with pytest.raises(SynthesisError, match="expected words"):
        say(KAL, text)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: int = 0) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(SynthesisError, match="apt-get install libflite1"):
        library.load("libflite.so.1", library.FLITE_PACKAGES)
    with pytest.raises(SynthesisError, match="libespeak-ng1 espeak-ng-data"):
        espeak._Engine()


@needs_espeak
def test_a_voice_that_espeak_lacks_is_an_error() -> None:
    with pytest.raises(SynthesisError, match="no voice"):
        say(Speaker("x", "espeak", "xx-nowhere", 1.0), "hello")


def test_unheard_of_phones_are_mapped() -> None:
    assert label("t#", "espeak") == "t" and label("eI##", "espeak") == "ey"
    assert label("%", "espeak") in PHONES and label("zzz", "flite") in PHONES


def test_heldout_voices_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [user_speaker(rng) for _ in range(5000)]
    parts = {part for speaker in drawn for part in (speaker.voice, *speaker.voice.split("+"))}
    for speaker in HELDOUT.values():
        assert parts.isdisjoint({speaker.voice, *speaker.voice.split("+")})
    assert 0.5 < np.mean([speaker.engine == "flite" for speaker in drawn]) < 0.6
    assert not {speaker.voice for speaker in AGENTS.values()} & {speaker.voice for speaker in HELDOUT.values()}


@needs_flite
def test_each_agent_is_nearest_to_itself() -> None:
    texts = ("we open at nine and close at six", "the capital of france is paris")
    examples = {name: [embedding(say(speaker, t).pcm) for t in texts] for name, speaker in AGENTS.items()}
    assert len(examples) == 18
    nearest = NearestVoice(examples)
    heard = {name: nearest(say(speaker, "a cake is four dollars").pcm) for name, speaker in AGENTS.items()}
    assert sum(name == found for name, found in heard.items()) >= 17, heard


def test_degrade_keeps_length_and_timing() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[9000:9240] = 0.5 * np.sin(np.arange(240) * 0.4)
    for seed in range(30):
        out = degrade(np.random.default_rng(seed), click)
        assert out.shape == click.shape and out.dtype == np.float32
        assert np.isfinite(out).all() and np.abs(out).max() <= 1
        assert abs(int(np.argmax(np.convolve(np.square(out), np.ones(240))[:-239])) - 9239) < 120
    np.testing.assert_array_equal(degrade(np.random.default_rng(1), click, 0.0), click)
    assert len(degrade(np.random.default_rng(1), click[:0])) == 0


@pytest.mark.parametrize("n_samples", [0, 1, 1920, SAMPLE_RATE])
def test_noise_and_sounds_keep_their_levels(n_samples: int) -> None:
    for seed in range(40):
        bed, event = (make(np.random.default_rng(seed), n_samples) for make in (noise, sound))
        for made in (bed, event):
            assert made.shape == (n_samples,) and made.dtype == np.float32 and np.isfinite(made).all()
        if n_samples >= 1920:
            assert -80 < 10 * np.log10(np.mean(np.square(bed)) + 1e-12) < -34.9
            assert np.abs(event).max() <= 10 ** (-3 / 20) + 1e-4

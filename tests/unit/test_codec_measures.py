"""Measures of what a codec loses, each with answers that are known."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest

from personaplex.errors import BackendError
from personaplex.evaluate.codec import measures

RNG = np.random.default_rng(4)
NOISE = (0.2 * RNG.standard_normal(24_000)).astype(np.float32)


def test_si_sdr_of_a_known_mixture_whatever_the_loudness() -> None:
    t = np.arange(24_000) / 24_000
    signal, noise = np.sin(2 * np.pi * 200 * t), 0.1 * np.sin(2 * np.pi * 300 * t)
    assert measures.si_sdr_db(signal, signal + noise) == pytest.approx(20, abs=1e-6)
    assert measures.si_sdr_db(signal, 0.01 * (signal + noise) + 3) == pytest.approx(20, abs=1e-6)
    assert measures.snr_db(signal, 0.01 * signal) == pytest.approx(0.087, abs=1e-3)  # which SNR does mind
    assert math.isnan(measures.si_sdr_db(0 * signal, signal)) and math.isnan(measures.si_sdr_db(signal, 0 * signal))


def test_mel_distance_is_decibels() -> None:
    assert measures.mel_distance_db(NOISE, NOISE) == 0
    assert measures.mel_distance_db(NOISE, 10 ** (6 / 20) * NOISE) == pytest.approx(6, abs=0.1)
    assert measures.mel_distance_db(NOISE, -NOISE) == pytest.approx(0, abs=1e-4)  # phases count for nothing
    assert measures.mel_distance_db(0 * NOISE, 0 * NOISE) == 0


def test_mel_distance_of_long_recordings_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    louder = np.concatenate([NOISE[:12_000], 2 * NOISE[12_000:]])
    whole = measures.mel_distance_db(NOISE, louder)
    monkeypatch.setattr(measures, "_AT_ONCE", 5000)
    assert measures.mel_distance_db(NOISE, louder) == pytest.approx(whole, rel=0.05) and whole > 2


@pytest.mark.parametrize("late", [0, 137, -50, 1920])
def test_a_delay_is_found_and_taken_out(late: int) -> None:
    sound = np.pad(NOISE, 3000)
    other = (0.5 * np.roll(sound, late)).astype(np.float32)
    delay = measures.delay_of([(sound, other), (sound[:20_000], other[:20_000])])
    assert delay.samples == late and delay.known and delay.likeness == pytest.approx(1, abs=0.1)
    a, b = measures.aligned(sound, other, late)
    assert len(a) == len(b) == len(sound) - abs(late) and np.array_equal(0.5 * a, b)
    longer = measures.aligned(sound, np.pad(other, (0, 700)), late)
    assert len(longer[0]) == len(longer[1]) and np.array_equal(longer[1][: len(b)], b)


def test_where_waveforms_are_unlike_no_delay_is_made_up() -> None:
    delay = measures.delay_of([(NOISE, RNG.standard_normal(24_000).astype(np.float32))])
    assert delay.samples == 0 and not delay.known
    assert measures.delay_of([]).samples == 0


def test_stoi_hears_noise_and_says_nothing_of_too_little(speech: np.ndarray) -> None:
    noisy = speech + NOISE.repeat(3)[: len(speech)]
    assert measures.stoi(speech, speech) == pytest.approx(1, abs=1e-6)
    assert measures.stoi(speech, noisy) < 0.9 and measures.estoi(speech, noisy) < measures.stoi(speech, noisy)
    assert math.isnan(measures.stoi(speech[:6000], speech[:6000]))


def test_stoi_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch, speech: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(BackendError, match="pip install pystoi"):
        measures.stoi(speech, speech)


def fake_pesq(calls: list[tuple[int, int, int, str]]) -> ModuleType:
    class PesqError(RuntimeError):
        pass

    def pesq(rate: int, reference: np.ndarray, decoded: np.ndarray, mode: str) -> float:
        calls.append((rate, len(reference), len(decoded), mode))
        if not reference.any():
            raise PesqError("no utterances")
        return float(np.square(reference).sum() / np.square(decoded).sum())

    made = ModuleType("pesq")
    made.pesq, made.PesqError = pesq, PesqError  # type: ignore[attr-defined]
    return made


def test_pesq_is_given_16_khz_wide_band_and_the_reference_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int, str]] = []
    monkeypatch.setitem(sys.modules, "pesq", fake_pesq(calls))
    assert measures.pesq_wb(NOISE, 2 * NOISE) == pytest.approx(0.25)
    assert calls == [(16_000, 16_000, 16_000, "wb")]
    assert math.isnan(measures.pesq_wb(0 * NOISE, NOISE))
    assert measures.MEASURES[-1].missing is None


def test_an_advantage_is_above_nought_for_the_better_one() -> None:
    by_name = {measure.name: measure for measure in measures.MEASURES}
    assert by_name["mel distance (dB)"].advantage(2, 5) == 3 and by_name["STOI"].advantage(0.9, 0.5) > 0
    assert set(measures.TELLING) <= set(by_name)

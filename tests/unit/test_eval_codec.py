"""The codec's evaluation: Opus, codebooks counted, intervals, bad recordings, controls."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from personaplex.audio import read_audio, write_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.cli.evaluation import show
from personaplex.cli.main import main
from personaplex.errors import AudioError, BackendError, UsageError
from personaplex.evaluate.codec import measures
from personaplex.evaluate.codec.coders import OPUS_LOWEST, MimiCoder, halved, opus, shuffled
from personaplex.evaluate.codec.run import evaluate_codec
from personaplex.evaluate.codec.usage import Tally, use_of
from personaplex.evaluate.recordings import Recording, find_recordings
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Row, mean
from personaplex.evaluate.statistics import is_above, jackknife_interval, mean_interval
from personaplex.models.mimi import Mimi
from tests.conftest import FIXTURES, PARITY

RNG = np.random.default_rng(4)
NOISE = (0.2 * RNG.standard_normal(24_000)).astype(np.float32)


@pytest.fixture(autouse=True)
def _without_pesq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine has it or not, unless a test puts one of its own there."""
    monkeypatch.setitem(sys.modules, "pesq", None)


def test_fewer_codebooks_are_the_first_of_more(mimi: Mimi, speech: np.ndarray) -> None:
    whole, two = MimiCoder(mimi, 8), MimiCoder(mimi, 2)
    codes = whole.encode(speech)
    assert codes.shape == (8, 28) and np.array_equal(two.encode(speech), codes[:2])
    assert (whole.bits_per_second, two.bits_per_second) == (1100, 275)
    latent = mimi.quantizer.semantic.decode(mx.array(codes.T[None, :, :1]))
    assert mx.array_equal(mimi.quantizer.decode(mx.array(codes.T[None, :, :1])), latent).item()
    acoustic = mimi.quantizer.acoustic
    first = acoustic.output_proj(acoustic.centroids[0][mx.array(codes[1])])
    assert np.allclose(mimi.quantizer.decode(mx.array(codes.T[None, :, :2])), latent + first, atol=1e-5)
    assert len(two.decode(codes[:2], len(speech))) == len(speech)
    assert not np.allclose(two.decode(codes[:2], len(speech)), whole.decode(codes, len(speech)), atol=1e-3)
    for wrong in (0, 9):
        with pytest.raises(UsageError, match="this codec has 8"):
            MimiCoder(mimi, wrong)


def test_a_codec_may_be_asked_for_more_codebooks_than_the_model_uses(speech: np.ndarray) -> None:
    folder = ModelFolder(FIXTURES / "transformers-mimi")
    more, usual = folder.load_mimi(11), folder.load_mimi(3)
    assert (more.n_codebooks, usual.n_codebooks) == (11, 8)
    codes = MimiCoder(more, 11).encode(speech[:9600])
    assert codes.shape == (11, 5) and np.array_equal(codes[:8], MimiCoder(usual, 8).encode(speech[:9600]))
    with pytest.raises(UsageError, match="this codec has 11"):
        folder.load_mimi(12)


def test_damage_is_what_it_says() -> None:
    codes = np.arange(60).reshape(5, 12)
    assert np.array_equal(halved(codes), codes[:2])
    mixed = shuffled(codes, np.random.default_rng(0))
    assert not np.array_equal(mixed, codes) and np.array_equal(np.sort(mixed, axis=1), codes)
    assert np.array_equal(mixed[1] - mixed[0], np.full(12, 12))  # whole frames were moved


def test_opus_takes_what_it_is_asked_for_and_comes_back_in_time() -> None:
    t = np.arange(72_000) / 24_000
    sound = (0.2 * np.sin(2 * np.pi * 180 * t * (1 + 0.1 * np.sin(3 * t))) * (np.sin(5 * t) > -0.3)).astype(np.float32)
    packed = opus(sound, 24_000)
    assert len(packed.pcm) == len(sound) and 8_000 < packed.bits_per_second < 30_000
    assert measures.si_sdr_db(sound, packed.pcm) > 10
    assert abs(measures.delay_of([(sound, packed.pcm)]).samples) <= 24
    lowest = opus(sound, OPUS_LOWEST)
    assert lowest.bits_per_second < packed.bits_per_second
    assert measures.mel_distance_db(sound, lowest.pcm) > measures.mel_distance_db(sound, packed.pcm)
    # Why it is not asked for Mimi's own rate:
    assert np.abs(opus(sound, OPUS_LOWEST / 3).pcm).max() < 0.01


def test_codebook_use_of_known_counts() -> None:
    even = use_of(np.full(8, 5))
    assert (even.entropy, even.perplexity, even.used) == (3, 8, 1)
    assert use_of(np.array([7, 0, 0, 0])) == (0, 0.25)
    assert use_of(np.array([1, 1, 0, 0])) == (1, 0.5)
    assert use_of(np.zeros(4)) == (0, 0)
    tally = Tally(2, 4)
    tally.add(np.array([[0, 0, 1, 1], [2, 2, 2, 2]]))
    tally.add(np.array([[2, 3, 2, 3], [2, 2, 2, 2]]))
    assert [use.entropy for use in tally.uses()] == [2, 0] and tally.n_frames == 8
    entropy, used, other, _ = tally.rows()
    assert (entropy.value, used.value, other.value) == (2, 1, 0)
    assert entropy.n == 2 and math.isnan(entropy.interval[0])  # of two recordings there is no spread to speak of
    for i in range(8):
        tally.add(np.array([[i % 4] * 4, [2] * 4]))
    low, high = tally.rows()[0].interval
    assert low < tally.rows()[0].value <= high == 2  # an interval ends where entropy does
    assert tally.rows()[2].interval == (0, 0)


def test_of_few_values_there_is_no_interval_and_of_more_it_holds_the_mean() -> None:
    assert all(math.isnan(end) for end in (*mean_interval([1.0, 1.0]), *mean_interval([0.1, 0.9, 0.5, 0.6, 0.2])))
    low, high = mean_interval([-0.5, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert -0.5 <= low < 0.75 < high <= 1, "of what ends at 1 no interval goes on"
    rng = np.random.default_rng(0)
    for n in (6, 9):
        held = [low <= 0.5 <= high for low, high in (mean_interval(list(rng.random(n)), i) for i in range(200))]
        assert 0.9 < np.mean(held) < 0.99
    low, high = mean_interval([0.0] * 5 + [1.0] * 5)
    assert 0 <= low < 0.3 and 0.7 < high <= 1
    # The jackknife of a mean is the mean's own interval.
    values = [1.0, 2.0, 4.0, 9.0, 1.0, 2.0, 4.0, 9.0, 4.0]
    left = [(sum(values) - value) / 8 for value in values]
    half = 1.959964 * float(np.std(values, ddof=1)) / 3
    assert jackknife_interval(4.0, left) == pytest.approx((4 - half, 4 + half))
    assert math.isnan(jackknife_interval(4.0, left[:7])[0])


@pytest.mark.parametrize("few", [[1.0], [1.0] * 5, [0.0] * 5, [0.9, 1.0, 0.95], [math.nan] * 9])
def test_a_few_values_show_nothing_about_chance(few: list[float]) -> None:
    assert is_above(few, 0.5) is None


def test_six_values_do() -> None:
    assert is_above([1.0] * 6, 0.5) is True and is_above([0.9, 1.0, 0.95, 0.9, 0.8, 0.7], 0.5) is True
    assert is_above([0.5] * 6, 0.5) is False and is_above([0.0, 1.0] * 3, 0.5) is False


def test_a_mean_leaves_out_what_was_not_measured() -> None:
    row = mean("what", [1.0, math.nan, 3.0])
    assert (row.value, row.n) == (2, 2)
    nothing = mean("what", [math.nan])
    assert math.isnan(nothing.value) and nothing.n == 0


def test_recordings_are_named_or_found_in_folders(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.flac", "notes.txt", ".hidden.wav", "sub/c.mp3", ".git/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_recordings([tmp_path, tmp_path / "a.flac", tmp_path / "notes.txt"])
    assert [Path(recording.name).name for recording in found] == ["a.flac", "b.WAV", "c.mp3", "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="no recordings in"):
        find_recordings([tmp_path / "empty"])
    with pytest.raises(AudioError, match="does not exist"):
        find_recordings([tmp_path / "missing.wav"])


@pytest.fixture
def pile(tmp_path: Path, speech: np.ndarray) -> list[Recording]:
    """Three recordings (one in stereo at 44.1 kHz) among what cannot be measured."""
    write_audio(tmp_path / "a.wav", speech)
    write_audio(tmp_path / "b.wav", speech[::-1].copy())
    stereo = np.stack([NOISE, NOISE], axis=1).repeat(2, axis=0)
    soundfile.write(tmp_path / "c.flac", stereo, 44_100)
    (tmp_path / "broken.wav").write_text("no sound")
    write_audio(tmp_path / "silent.wav", np.zeros(24_000, np.float32))
    write_audio(tmp_path / "short.wav", speech[:2000])
    soundfile.write(tmp_path / "nan.wav", np.full(24_000, np.nan), 24_000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", NOISE * np.float32(1e30), 24_000, subtype="FLOAT")
    return find_recordings([tmp_path])


def test_broken_recordings_are_told_and_the_rest_is_counted(mimi: Mimi, pile: list[Recording]) -> None:
    told: list[str] = []
    result = evaluate_codec(mimi, pile, seed=1, say=told.append)
    assert [Path(item["recording"]).name for item in result.items] == ["a.wav", "b.wav", "c.flac"]
    reasons = {Path(failure.item).name: failure.reason for failure in result.failures}
    assert set(reasons) == {"broken.wav", "silent.wav", "short.wav", "nan.wav", "loud.wav"}
    assert "no samples of sound" in reasons["loud.wav"]
    assert "is silent" in reasons["silent.wav"] and "0.08 s" in reasons["short.wav"] and "NaN" in reasons["nan.wav"]
    assert (result.about["recordings"], result.about["measured"]) == (8, 3)
    assert (result.rows[0].what, result.rows[0].value, result.rows[0].n) == ("recordings measured", 3 / 8, 8)
    assert sum("not measured" in line for line in told) == 5
    rows = {row.what: row for row in result.rows}
    assert rows["Mimi, 8 codebooks: bit rate (kbit/s)"].value == 1.1
    stoi = rows["Mimi, 8 codebooks: STOI"]
    assert stoi.n == 3 and stoi.value == pytest.approx(
        np.mean([item["measures"]["Mimi"]["STOI"] for item in result.items])
    )
    assert stoi.better == "higher" and rows["Mimi, 8 codebooks: mel distance (dB)"].better == "lower"
    assert rows["Mimi better than Opus by mel distance (dB)"].better == "higher"
    (took,) = (row for row in result.rows if "bit rate that it took" in row.what)
    assert took.what.startswith("Opus, asked for 6 kbit/s, the lowest it is specified for") and 2 < took.value < 8
    delay = next(row for row in result.rows if row.what.startswith("Mimi, 8 codebooks: delay, none assumed"))
    assert math.isnan(delay.value) and delay.n == 0, "random weights: no delay was measured, which is not 0 ms"
    assert sum("share of entries used" in row.what for row in result.rows) == 8
    in_pairs = [row for row in result.rows if row.what in result.items[0]["values"]]
    assert len(in_pairs) == 5 * (1 + 2 + 2), "five measures of Mimi, of Opus, against it, and of two controls"
    for row in in_pairs:
        added = [value for item in result.items for value in item["values"].get(row.what, [])]
        assert float(np.mean(added)) == pytest.approx(row.value) and len(added) == row.n, (
            "a comparison in pairs needs it"
        )
    (missing,) = (row for row in result.rows if row.what.startswith("PESQ-WB"))
    assert "pip install pesq" in missing.what and math.isnan(missing.value) and missing.n == 0


def test_the_same_seed_gives_the_same_numbers(mimi: Mimi, pile: list[Recording]) -> None:
    first, again, other = (evaluate_codec(mimi, pile[:2], seed=s, with_opus=False) for s in (1, 1, 2))
    assert first.items == again.items and first.items != other.items
    assert not any("Opus" in row.what for row in first.rows)


def test_one_codebook_has_no_half(mimi: Mimi, pile: list[Recording]) -> None:
    result = evaluate_codec(mimi, pile[:1], n_codebooks=1, with_opus=False)
    controls = {(control["control"], control["held"]) for control in result.about["controls"]}
    assert controls == {("codes in another order", None)}  # and of one recording nothing can be said


def test_nothing_to_measure_is_an_error(mimi: Mimi, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_text("no sound")
    result = evaluate_codec(mimi, find_recordings([tmp_path / "broken.wav"]))
    assert isinstance(result.error, AudioError) and "none of 1 recordings could be measured" in str(result.error)
    assert (result.rows[0].what, result.rows[0].value, result.rows[0].n) == ("recordings measured", 0.0, 1)


def test_a_codec_that_loses_nothing_beats_its_controls_and_one_that_keeps_nothing_does_not(
    tmp_path: Path, speech: np.ndarray
) -> None:
    """A codec of scripted loss: the more codebooks, the less noise is on the frame that codes name; or it is deaf."""
    write_audio(tmp_path / "whole.wav", speech)
    frames = np.split(np.pad(read_audio(tmp_path / "whole.wav"), (0, -len(speech) % 1920)), 28)

    class Scripted:
        n_codebooks, n_bins = 4, 64

        def __init__(self, *, deaf: bool = False, noise: float = 0.5) -> None:
            self.deaf, self.noise = deaf, noise

        def encode(self, pcm: mx.array) -> mx.array:
            return mx.broadcast_to(mx.arange(-(-pcm.shape[1] // 1920))[None, None], (1, 4, -(-pcm.shape[1] // 1920)))

        def decode(self, codes: mx.array) -> mx.array:
            sound = np.concatenate([frames[0 if self.deaf else int(code)] for code in np.array(codes[0, 0])])
            noise = np.random.default_rng(0).standard_normal(len(sound)) * (
                0 if self.deaf else self.noise ** codes.shape[1]
            )
            return mx.array((sound + 0.2 * noise).astype(np.float32)[None])

    paths = []
    for i, n in enumerate((30_000, 35_000, 40_000, 45_000, 50_000, 52_345)):
        paths.append(Recording(f"{i}", tmp_path / f"{i}.wav"))
        write_audio(tmp_path / f"{i}.wav", speech[:n])

    def held(*, deaf: bool) -> set[bool]:
        codec: Mimi = Scripted(deaf=deaf)  # type: ignore[assignment]
        return {control["held"] for control in evaluate_codec(codec, paths, with_opus=False).about["controls"]}

    assert held(deaf=False) == {True} and held(deaf=True) == {False}
    perfect: Mimi = Scripted(noise=0)  # type: ignore[assignment]
    by_name = {row.what: row for row in evaluate_codec(perfect, paths[:2], with_opus=False).rows}
    # An infinite SNR is no number to take a mean of; and what must be worse has a goal.
    assert by_name["Mimi, 4 codebooks: SNR (dB)"].n == 0 and by_name["Mimi, 4 codebooks: STOI"].value > 0.99
    goals = {what: row.goal for what, row in by_name.items() if what.startswith("control, codes in another order")}
    assert sorted(what.split("by ")[1] for what, goal in goals.items() if goal == 0) == sorted(measures.TELLING)


def test_controls_that_do_not_hold_are_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    controls = [{"control": "shuffled codes", "measure": "STOI", "held": held} for held in (True, False, False, None)]
    show(Result("codec", {"controls": controls}, [Row("what", math.nan, (math.nan, math.nan), 0)]), tmp_path / "r.json")
    said = capsys.readouterr()
    assert said.err.count("warning:") == 2 and said.err.count("too few recordings") == 1
    assert "| what |  | not measured |  | 0 |" in said.out
    assert Result.load(tmp_path / "r.json").about["controls"] == controls


def test_of_what_was_not_measured_five_are_told_and_all_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [Failure(f"clip {i}", f"clip {i} is broken" if i else "no sound") for i in range(7)]
    row = Row("what", 1.0, (0.5, 1.5), 3)
    show(Result("codec", {}, [row], failures=failures), None, quiet=True)
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "not measured: clip 0: no sound", *(f"not measured: clip {i} is broken" for i in range(1, 5)),
        "not measured: 2 more",
    ]  # fmt: skip
    assert "| what |" in told.out
    path = tmp_path / "r.json"
    with pytest.raises(AudioError, match="nothing"):
        show(Result("codec", {}, [row], failures=failures, error=AudioError("nothing")), path)
    assert capsys.readouterr().out == "" and Result.load(path).failures == failures


TINY = ["eval", "codec", "--model", str(PARITY)]


def test_from_the_command_line(tmp_path: Path, pile: list[Recording], capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "codec.json"
    assert main([*TINY, pile[0].name, "--codebooks", "4", "--no-opus", "--json", str(kept)]) == 0
    said = capsys.readouterr()
    assert "| Mimi, 4 codebooks: bit rate (kbit/s) |  | 0.550 |" in said.out and "wrote" in said.err
    stored = json.loads(kept.read_text())
    assert stored["about"]["codebooks"] == 4 and len(stored["about"]["codec"]) == 64
    assert stored["kind"] == "codec" and len(stored["items"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.wav"], 3, "does not exist"),
        (["."], 3, "no recordings"),
        (["LICENSE"], 3, "none of 1 recordings could be measured"),
        (["LICENSE", "--codebooks", "0"], 2, "this codec has 8"),
        (["LICENSE", "--codebooks", "9"], 2, "this codec has 8"),
        (["LICENSE", "--seed", "-1"], 2, "seed"),
        (["LICENSE", "--json", "no/such/folder/x.json"], 6, "no/such/folder"),
        (["LICENSE", "--sentences", "2"], 2, "not both"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments and arguments[0] == "LICENSE":
        Path("LICENSE").write_text("no sound")
    assert main([*TINY, *arguments]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("personaplex: ") and says in last


def test_opus_that_is_not_built_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_codec(*_: object, **__: object) -> SimpleNamespace:
        raise ValueError("libopus is not there")

    monkeypatch.setattr("personaplex.evaluate.codec.coders.av.open", no_codec)
    with pytest.raises(BackendError, match="--no-opus"):
        opus(NOISE, 6000)

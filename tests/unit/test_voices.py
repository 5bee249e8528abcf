"""Voices from strangers: read, or refused by name; never run, never written anywhere."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.pickles import _rebuild, read_tensors
from personaplex.checkpoint.voices import VoiceShelf, voice_from_file
from personaplex.engine.prompt import as_embeddings, compose
from personaplex.errors import CheckpointError, PersonaError, PersonaPlexError
from personaplex.voice import Voice, blend
from tests.conftest import PARITY, Tensors, peak_error, same

GOOD = PARITY / "voices" / "VOICE0.pt"


def zipped(pickled: bytes, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("v/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"v/data/{name}", data)
    return out.getvalue()


def test_a_pt_file_is_read_without_torch(expected: Tensors) -> None:
    tensors = read_tensors(GOOD.read_bytes(), "good")
    assert same(tensors["embeddings"], expected["voice.embeddings"])
    assert same(tensors["cache"], expected["voice.cache"])
    assert tensors["embeddings"].dtype == mx.bfloat16


class Hostile:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("call", "named"),
    [((os.system, "touch hacked"), "system"), ((eval, "1"), "eval"), ((getattr, "", "join"), "getattr")],
)
def test_a_hostile_pickle_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        read_tensors(zipped(pickle.dumps({"embeddings": Hostile(*call)}, protocol=2)), "hostile.pt")
    assert not list(tmp_path.iterdir())


def damaged(**changes: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(GOOD) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            for ending, change in changes.items():
                if info.filename.endswith(ending):
                    data = change(data)
            target.writestr(info.filename, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        GOOD.read_bytes()[:1000],
        zipped(b""),
        zipped(pickle.dumps([1, 2])),
        zipped(pickle.dumps({"embeddings": 3})),
        damaged(pkl=lambda d: d[: len(d) // 2]),
        damaged(pkl=lambda d: d.replace(b"BFloat16Storage", b"BFloat17Storage")),
        damaged(**{"data/0": lambda d: d[:7]}),
        damaged(**{"data/0": lambda d: d[:32]}),
    ],
)
def test_a_damaged_pt_file_is_one_error(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"voice\.pt"):
        read_tensors(data, "voice.pt")


def test_any_byte_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small fuzz of the pickle: every outcome is tensors or our error."""
    with zipfile.ZipFile(GOOD) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
        root = name.removesuffix("/data.pkl")
        members = {n.removeprefix(f"{root}/data/"): archive.read(n) for n in archive.namelist() if "/data/" in n}
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        broken = bytearray(pickled)
        broken[rng.integers(len(broken))] = rng.integers(256)
        try:
            mx.eval(read_tensors(zipped(bytes(broken), **members), "voice.pt"))
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_a_tensor_larger_than_its_storage_is_refused() -> None:
    """Strides of zero make a terabyte of eight bytes; MLX would end the process over it."""
    for size in (2**40, 2**31 - 1, 9):
        with pytest.raises(ValueError, match="beyond its storage"):
            _rebuild(mx.zeros(8), 0, (size, 1), (0, 0))
    assert _rebuild(mx.arange(8), 2, (3, 2), (2, 1)).tolist() == [[2, 3], [4, 5], [6, 7]]


def test_an_encrypted_or_corrupted_member_is_one_error() -> None:
    encrypted = bytearray(GOOD.read_bytes())
    for at in (encrypted.index(b"PK\x03\x04") + 6, encrypted.index(b"PK\x01\x02") + 8):
        encrypted[at] |= 1
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(bytes(encrypted), "voice.pt")


def archive_of(path: Path, *members: tarfile.TarInfo, good: bool = True) -> VoiceShelf:
    with tarfile.open(path / "voices.tgz", "w:gz") as archive:
        if good:
            archive.add(GOOD, "voices/VOICE0.pt")
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return VoiceShelf(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_a_voice_from_the_archive_is_the_voice_from_the_folder(tmp_path: Path) -> None:
    shelf = archive_of(tmp_path, member("voices", tarfile.DIRTYPE))
    assert shelf.names() == ["VOICE0"]
    packed, unpacked = shelf.load("VOICE0"), ModelFolder(PARITY).voices.load("VOICE0")
    assert packed.embeddings is not None and unpacked.embeddings is not None
    assert same(packed.embeddings, unpacked.embeddings)
    assert packed.ring is not None and unpacked.ring is not None
    assert np.array_equal(packed.ring, unpacked.ring)
    assert [p.name for p in tmp_path.iterdir()] == ["voices.tgz"], "nothing is unpacked to disk"


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil.pt"),
        member("/etc/evil.pt"),
        member("voices/../../evil.pt"),
        member("voices/link.pt", tarfile.SYMTYPE, "/etc/passwd"),
        member("voices/hard.pt", tarfile.LNKTYPE, "voices/VOICE0.pt"),
        member("voices/pipe.pt", tarfile.FIFOTYPE),
    ],
    ids=lambda m: m.name,
)
def test_an_unsafe_archive_is_refused_whole(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    shelf = archive_of(tmp_path, bad)
    for use in (shelf.names, lambda: shelf.load("VOICE0")):
        with pytest.raises(CheckpointError, match="no plain file"):
            use()


def test_a_broken_archive_is_one_error(tmp_path: Path) -> None:
    archive_of(tmp_path)
    whole = (tmp_path / "voices.tgz").read_bytes()
    for data in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "voices.tgz").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"voices\.tgz"):
            VoiceShelf(tmp_path).load("VOICE0")
    archive_of(tmp_path, member("voices/HUGE.pt", size=1 << 27))
    with pytest.raises(CheckpointError, match="too many for a voice"):
        VoiceShelf(tmp_path).load("HUGE")


def test_an_unknown_voice_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="unknown voice 'NATF9'; this model has VOICE0"):
        ModelFolder(PARITY).voices.load("NATF9")
    with pytest.raises(PersonaError, match="this model has none"):
        VoiceShelf(tmp_path).load("NATF0")


def test_a_voice_as_safetensors(tmp_path: Path, expected: Tensors) -> None:
    path = tmp_path / "v.safetensors"
    saved = {
        "embeddings": expected["voice.embeddings"].astype(mx.float16),
        "cache": expected["voice.cache"].astype(mx.float32),
    }
    mx.save_safetensors(str(path), saved)
    voice = voice_from_file(path)
    assert voice.ring is not None and np.array_equal(voice.ring, np.array(expected["voice.cache"])[0])
    codes = expected["gen.voice_prompt_codes"].T[None].astype(mx.int32)
    mx.save_safetensors(str(path), {"codes": codes})
    codes_again = voice_from_file(path).codes
    assert codes_again is not None and np.array_equal(codes_again, np.array(expected["gen.voice_prompt_codes"]))
    mx.save_safetensors(str(path), {"codes": codes, "more": codes})
    with pytest.raises(PersonaError, match="expected tensors"):
        voice_from_file(path)


@pytest.mark.parametrize(
    "voice",
    [
        Voice("w", embeddings=mx.zeros((5, 17)), ring=np.zeros((17, 4), np.int32)),
        Voice("w", embeddings=mx.zeros((5, 16)), ring=np.zeros((17, 3), np.int32)),
        Voice("w", embeddings=mx.zeros((5, 16)), ring=np.full((17, 4), -2)),
        Voice("w", embeddings=mx.zeros((5, 16)), ring=np.full((17, 4), 2049)),
        Voice("w", codes=np.zeros((4, 7), np.int32)),
        Voice("w", codes=np.zeros((0, 8), np.int32)),
        Voice("w", codes=np.full((4, 8), 2048)),
    ],
)
def test_a_voice_of_another_model_is_refused(folder: ModelFolder, voice: Voice) -> None:
    with pytest.raises(PersonaError, match="voice w"):
        compose(folder.config, voice, [5])


def test_a_role_token_outside_the_vocabulary_is_refused(folder: ModelFolder) -> None:
    with pytest.raises(PersonaError, match="token 320"):
        compose(folder.config, None, [5, 320])


def test_codes_of_a_smaller_codebook_need_their_own_silence(tiny_folder: Path) -> None:
    from tests.conftest import WINDOW

    config = ModelFolder(WINDOW).config
    assert compose(config, None, [5]).n_frames == 13
    import dataclasses

    with pytest.raises(PersonaPlexError, match="silence and sine codes"):
        compose(dataclasses.replace(config, silence_codes=(948,) * 8), None, [5])


def test_a_voice_cloned_from_a_clip(model: PersonaPlex, speech: np.ndarray, tmp_path: Path) -> None:
    """Loudness goes to -24 LUFS first: a clip and the same clip at half volume are one voice, nearly to the code."""
    import soundfile
    from pyloudnorm.meter import Meter

    from personaplex.audio import normalise_loudness

    soundfile.write(tmp_path / "clip.wav", speech, 24_000)
    voice = model.load_voice(tmp_path / "clip.wav")
    assert voice.codes is not None and voice.codes.shape == (28, 8)
    normalised = normalise_loudness(speech, "clip")
    assert Meter(24_000).integrated_loudness(normalised) == pytest.approx(-24, abs=0.01)
    assert normalised / speech.max() == pytest.approx(speech * normalised.max() / speech.max() ** 2, abs=1e-5)
    assert np.array_equal(voice.codes.T, np.array(model.mimi.encode(mx.array(_as_written(tmp_path))[None])[0]))


def _as_written(folder: Path) -> np.ndarray:
    from personaplex.audio import normalise_loudness, read_audio

    return normalise_loudness(read_audio(folder / "clip.wav"), "clip")


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.full((1, 8, 4), 0.5, np.float32), "not whole numbers"),
        (np.full((1, 8, 4), np.nan, np.float32), "not whole numbers"),
        (np.full((1, 8, 4), 2.0**33, np.float32), "out of range"),
        (np.full((1, 8, 4), 2**40, np.int64), "out of range"),
        (np.full((1, 8, 4), -1, np.int64), "out of range"),
    ],
)
def test_codes_that_are_no_codes_are_refused(tmp_path: Path, codes: np.ndarray, says: str) -> None:
    mx.save_safetensors(str(tmp_path / "v.safetensors"), {"codes": mx.array(codes, getattr(mx, str(codes.dtype)))})
    with pytest.raises(PersonaError, match=says):
        voice_from_file(tmp_path / "v.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    tensors = read_tensors(GOOD.read_bytes(), "good")
    tensors["embeddings"][0, 0, 0, 0] = value
    mx.save_safetensors(str(tmp_path / "v.safetensors"), tensors)
    with pytest.raises(PersonaError, match="not all finite"):
        voice_from_file(tmp_path / "v.safetensors")


def test_a_ring_of_fractions_is_refused(tmp_path: Path) -> None:
    tensors = read_tensors(GOOD.read_bytes(), "good")
    tensors["cache"] = tensors["cache"].astype(mx.float32) + 0.5
    mx.save_safetensors(str(tmp_path / "v.safetensors"), tensors)
    with pytest.raises(PersonaError, match="cache hold values that are not whole"):
        voice_from_file(tmp_path / "v.safetensors")


def clip_voice(n_frames: int, seed: int) -> Voice:
    return Voice(f"clip{seed}", codes=np.random.default_rng(seed).integers(0, 2048, (n_frames, 8)).astype(np.int32))


@pytest.mark.parametrize("n_frames", [2, 5, 6, 7, 8])
def test_codes_and_embeddings_are_the_same_prompt(model: PersonaPlex, n_frames: int) -> None:
    voice = clip_voice(n_frames, 1)
    prompts = [compose(model.config, v, [5, 6]) for v in (voice, as_embeddings(model.lm, model.config, voice))]
    assert prompts[0].n_frames == prompts[1].n_frames and np.array_equal(prompts[0].pending, prompts[1].pending)
    read = [model.generator.read(prompt) for prompt in prompts]
    assert read[0] is not None and read[1] is not None
    assert peak_error(read[1].z, read[0].z) < 1e-5


def test_a_blend_lies_between_two_voices_and_ends_as_the_shorter(model: PersonaPlex) -> None:
    short, long = (as_embeddings(model.lm, model.config, clip_voice(n, n)) for n in (5, 9))
    assert short.embeddings is not None and long.embeddings is not None
    for weight in (0.0, 0.25, 1.0):
        for first, second, share in ((short, long, weight), (long, short, 1 - weight)):
            made = blend(first, second, share, "both")
            expected = (1 - weight) * short.embeddings + weight * long.embeddings[:4]
            assert made.embeddings is not None and peak_error(made.embeddings, expected) < 1e-6
            assert made.ring is short.ring and made.name == "both"
            assert compose(model.config, made, [5]).n_frames == compose(model.config, short, [5]).n_frames


def test_what_cannot_be_blended_is_refused(model: PersonaPlex) -> None:
    voice = as_embeddings(model.lm, model.config, clip_voice(5, 1))
    other = Voice("other", embeddings=mx.zeros((4, 3)), ring=voice.ring)
    for first, second, weight, told in (
        (voice, clip_voice(5, 1), 0.5, "one of these has none"),
        (voice, other, 0.5, "different models"),
        (voice, voice, 1.5, "from 0 to 1"),
        (voice, voice, float("nan"), "from 0 to 1"),
    ):
        with pytest.raises(PersonaError, match=told):
            blend(first, second, weight, "both")

"""flite through ctypes: one utterance at a time, with the times of its segments."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_short, c_void_p
from functools import cache
from typing import Any

import numpy as np

from personaplex.errors import SynthesisError
from personaplex.speech.library import FLITE_PACKAGES, begin_noise, load
from personaplex.speech.utterance import Raw, Segment

NATURAL_PITCH = {
    "slt": (172.0, 27.0),
    "rms": (98.0, 24.0),
    "awb": (132.0, 25.0),
    "kal": (95.0, 11.0),
    "kal16": (95.0, 11.0),
}
"""Mean and standard deviation of each voice's pitch as it was recorded, Hz."""

NATURAL_STRETCH = {"kal": 1.1, "kal16": 1.1}
"""Duration stretch a voice comes with, where it is not 1."""


class _Voice(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("features", c_void_p))


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", c_char_p),
        ("rate", c_int),
        ("n_samples", c_int),
        ("n_channels", c_int),
        ("samples", POINTER(c_short)),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {  # the result's type, then the arguments'
    "flite_init": (c_int,),
    "flite_synth_text": (c_void_p, c_char_p, c_void_p),
    "delete_utterance": (None, c_void_p),
    "utt_wave": (POINTER(_Wave), c_void_p),
    "utt_relation": (c_void_p, c_void_p, c_char_p),
    "relation_head": (c_void_p, c_void_p),
    "item_next": (c_void_p, c_void_p),
    "item_feat_string": (c_char_p, c_void_p, c_char_p),
    "item_feat_float": (c_float, c_void_p, c_char_p),
    "item_set_int": (None, c_void_p, c_char_p, c_int),
    "ffeature_int": (c_int, c_void_p, c_char_p),
    "feat_set_float": (None, c_void_p, c_char_p, c_float),
    "feat_set": (None, c_void_p, c_char_p, c_void_p),
    "feat_val": (c_void_p, c_void_p, c_char_p),
    "val_cg_db": (c_void_p, c_void_p),
    "cg_db_val": (c_void_p, c_void_p),
}


@cache
def _library() -> ctypes.CDLL:
    library = load("libflite.so.1", FLITE_PACKAGES, ctypes.RTLD_GLOBAL)
    # The voices find the dictionary among the symbols already loaded.
    for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
        load(name, FLITE_PACKAGES, ctypes.RTLD_GLOBAL)
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.flite_init()
    return library


@cache
def _voice(name: str) -> Any:
    _library()
    register = getattr(load(f"libflite_cmu_us_{name}.so.1", FLITE_PACKAGES), f"register_cmu_us_{name}")
    register.restype, register.argtypes = POINTER(_Voice), (c_void_p,)
    voice = register(None)
    if name == "rms":
        _use_pitch_model(voice.contents.features)
    return voice


_VOICE_DATA_BYTES, _SPAMF0_AT = 256, 240
_copies: list[Any] = []


def _use_pitch_model(features: int) -> None:
    """Give a voice a copy of its data with `spamf0` cleared: the pitch model it switches on ignores all settings."""
    library = _library()
    data = ctypes.string_at(library.val_cg_db(library.feat_val(features, b"cg_db")), _VOICE_DATA_BYTES)
    copy = ctypes.create_string_buffer(data[:_SPAMF0_AT] + bytes(4) + data[_SPAMF0_AT + 4 :], _VOICE_DATA_BYTES)
    _copies.append(copy)
    library.feat_set(features, b"cg_db", library.cg_db_val(ctypes.addressof(copy)))


def _items(utterance: int, relation: bytes) -> list[int]:
    library = _library()
    item, found = library.relation_head(library.utt_relation(utterance, relation)), []
    while item:
        found.append(item)
        item = library.item_next(item)
    return found


def synthesise(voice: str, tokens: list[str], pitch: float, spread: float, stretch: float) -> Raw:
    """Say `tokens`, one word each: mean pitch in Hz, `spread` times its natural variation, `stretch` times as long."""
    library, chosen = _library(), _voice(voice)
    mean, deviation = NATURAL_PITCH[voice]
    settings = {
        b"int_f0_target_mean": pitch,
        b"int_f0_target_stddev": deviation * spread * pitch / mean,
        b"duration_stretch": stretch * NATURAL_STRETCH.get(voice, 1.0),
    }
    for name, value in settings.items():
        library.feat_set_float(chosen.contents.features, name, value)
    text = " ".join(tokens).encode("ascii")
    begin_noise(text)
    utterance = library.flite_synth_text(text, chosen)
    if not utterance:
        raise SynthesisError(f"flite said nothing for {' '.join(tokens)!r}; expected words of letters and apostrophes")
    try:
        wave = library.utt_wave(utterance).contents
        pcm = np.ctypeslib.as_array(wave.samples, (wave.n_samples,)).astype(np.float32) / 32768
        for index, token in enumerate(_items(utterance, b"Token"), start=1):
            library.item_set_int(token, b"index", index)
        segments, start = [], 0.0
        for item in _items(utterance, b"Segment"):
            end = library.item_feat_float(item, b"end")
            index = library.ffeature_int(item, b"R:SylStructure.parent.parent.R:Token.parent.index")
            segments.append(Segment(library.item_feat_string(item, b"name").decode(), start, end, index - 1))
            start = end
        return Raw(pcm, wave.rate, segments)
    finally:
        library.delete_utterance(utterance)

"""`personaplex codec`: Mimi alone, audio to tokens and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import numpy as np

from personaplex.audio import check_format, read_audio, write_audio
from personaplex.cli.options import json_option, model_option, note, note_blas
from personaplex.errors import UsageError
from personaplex.files import check_writable, whole_file
from personaplex.units import FRAME_SECONDS, SAMPLE_RATE, frames_in

if TYPE_CHECKING:
    import mlx.core as mx

    from personaplex.models.mimi import Mimi

T = TypeVar("T")


@click.group("codec")
def command() -> None:
    """Mimi alone: audio to tokens and back."""


@command.command()
@click.argument("source", metavar="IN.wav")
@click.argument("target", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@model_option
@json_option
def encode(source: str, target: Path, model: str, as_json: bool) -> None:
    """Write the `codes` [1, 8, frames] (int32) of a recording."""
    import mlx.core as mx

    _check_codes_name(target)
    check_writable(target)
    pcm, mimi = read_audio(source), _load(model)
    codes, ms = _timed(lambda: _evaluated(mimi.encode(mx.array(pcm)[None])))
    with whole_file(target) as temporary:
        mx.save_safetensors(str(temporary), {"codes": codes})
    _report({"output": str(target), **_speed("encode", ms, codes.shape[2])}, as_json)


@command.command()
@click.argument("source", metavar="IN.safetensors", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.wav", type=click.Path(path_type=Path))
@model_option
@json_option
def decode(source: Path, target: Path, model: str, as_json: bool) -> None:
    """Write the recording that `codes` [1, 8, frames] stand for."""
    from personaplex.checkpoint.codes import read_codes

    check_format(target)
    check_writable(target)
    mimi = _load(model)
    codes = read_codes(source, ["codes"], mimi.n_codebooks, mimi.n_bins)
    pcm, ms = _timed(lambda: np.array(mimi.decode(codes)[0]))
    write_audio(target, pcm)
    _report({"output": str(target), **_speed("decode", ms, codes.shape[2])}, as_json)


@command.command()
@click.argument("source", metavar="IN.wav")
@click.argument("target", metavar="OUT.wav", type=click.Path(path_type=Path))
@model_option
@json_option
def roundtrip(source: str, target: Path, model: str, as_json: bool) -> None:
    """Encode and decode a recording; print signal-to-noise ratio, real-time factor and time per frame."""
    import mlx.core as mx

    from personaplex.evaluate.codec.measures import snr_db

    check_format(target)
    check_writable(target)
    pcm, mimi = read_audio(source), _load(model)
    codes, encode_ms = _timed(lambda: _evaluated(mimi.encode(mx.array(pcm)[None])))
    decoded, decode_ms = _timed(lambda: np.array(mimi.decode(codes)[0]))
    decoded = decoded[: len(pcm)]
    write_audio(target, decoded)
    n_frames = frames_in(len(pcm))
    report: dict[str, object] = {"output": str(target), "seconds": round(len(pcm) / SAMPLE_RATE, 3)}
    report |= {"snr_db": round(snr_db(pcm, decoded), 2)}
    report |= _speed("encode", encode_ms, n_frames) | _speed("decode", decode_ms, n_frames)
    report["rtf"] = round((encode_ms + decode_ms) / (1000 * FRAME_SECONDS * n_frames), 4)
    _report(report, as_json)


def _load(model: str) -> Mimi:
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import CODEC_FILES, resolve

    note_blas()
    return ModelFolder(resolve(model, CODEC_FILES)).load_mimi()


def _check_codes_name(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: codes are written as .safetensors")


def _evaluated(array: mx.array) -> mx.array:
    import mlx.core as mx

    mx.eval(array)
    return array


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - began)


def _speed(what: str, ms: float, n_frames: int) -> dict[str, object]:
    return {f"{what}_ms_per_frame": round(ms / n_frames, 3), f"{what}_rtf": round(ms / (80 * n_frames), 4)}


def _report(report: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({k: None if v in (float("inf"), float("-inf")) else v for k, v in report.items()}))
    else:
        note(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items()))

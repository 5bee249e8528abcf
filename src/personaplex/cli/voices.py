"""`personaplex voices`: voices of the user's own, cloned from a few seconds of speech."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from personaplex.audio import check_format, read_audio, write_audio
from personaplex.cli.options import find_voice, json_option, model_option, note, note_blas, own_voices
from personaplex.errors import CheckpointError, PersonaError, UsageError
from personaplex.files import check_writable
from personaplex.units import FRAME_SECONDS

if TYPE_CHECKING:
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.voice import Voice

CONSENT = "Has the person whose voice this is agreed to have it cloned?"


@click.group("voices")
def command() -> None:
    """Voices of your own: clone, blend, list, play, remove.

    They lie in the folder that PERSONAPLEX_VOICES names, else in personaplex/voices below XDG_DATA_HOME
    (~/.local/share). Every --voice looks there first.
    """


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Print your voices: name, length, source and date. (`respond --list-voices` prints a model's.)"""
    from personaplex.checkpoint.tensors import TensorFile
    from personaplex.checkpoint.user_voices import UserVoices

    voices = UserVoices(own_voices())
    found: dict[str, dict[str, object]] = {}
    for name in voices.names():
        try:
            file = TensorFile(voices.path(name))
        except CheckpointError as error:
            note(f"note: {error}")
            continue
        entry = file.entries.get("codes")
        seconds = round(entry.shape[-1] * FRAME_SECONDS, 2) if entry is not None else None
        found[name] = {"seconds": seconds, **file.metadata}
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, about in found.items():
        length = f"{about['seconds']} s" if about["seconds"] else "embeddings"
        click.echo(f"{name:20} {length:10} {about.get('date', '')}  {about.get('source', '')}".rstrip())
    if not found:
        note(f"no voices in {voices.folder}; `personaplex voices add NAME clip.wav` makes one")


@command.command()
@click.argument("name")
@click.argument("clip", metavar="CLIP.wav")
@model_option
@click.option("--consent", is_flag=True, help="The person whose voice it is has agreed; without it you are asked.")
@json_option
def add(name: str, clip: str, model: str, consent: bool, as_json: bool) -> None:
    """Clone a voice from 3 to 30 seconds of clean speech, 5 are enough."""
    from personaplex.checkpoint.hub import CODEC_FILES, VOICE_FILES, resolve
    from personaplex.checkpoint.user_voices import UserVoices, check_clip, clone

    voices = UserVoices(own_voices())
    voices.check_name(name)
    if clip == "-":
        raise UsageError("name a file: a voice remembers where it came from")
    pcm = read_audio(clip)
    check_clip(pcm, clip)
    _ask(consent)
    note_blas(quiet=as_json)
    folder = _folder(resolve(model, (*VOICE_FILES, *CODEC_FILES)))
    if name in folder.voices.names():
        raise PersonaError(f"{model} has a voice {name!r} of its own; take another name")
    codes = clone(folder.load_mimi(), pcm, clip)
    path = voices.add(name, codes, source=Path(clip), model=model, codec=folder.codec_fingerprint)
    if as_json:
        click.echo(json.dumps({"voice": name, "file": str(path), "seconds": round(codes.shape[2] * FRAME_SECONDS, 2)}))
    else:
        note(f"wrote {path} ({path.stat().st_size} bytes); --voice {name} speaks like it")


@command.command("blend")
@click.argument("name")
@click.argument("first")
@click.argument("second")
@click.option("--weight", type=float, default=0.5, show_default=True, help="How much the second voice counts, 0 to 1.")
@model_option
def blend_(name: str, first: str, second: str, weight: float, model: str) -> None:
    """Mix two voices, yours or the model's, into a new one. Experimental."""
    from personaplex.checkpoint.hub import CODEC_FILES, VOICE_FILES, resolve
    from personaplex.checkpoint.user_voices import UserVoices
    from personaplex.voice import blend

    if not 0 <= weight <= 1:
        raise UsageError(f"--weight is {weight}; it must be from 0 to 1")
    voices = UserVoices(own_voices())
    voices.check_name(name)
    note_blas(quiet=False)
    folder = _folder(resolve(model, (*VOICE_FILES, *CODEC_FILES)))
    if name in folder.voices.names():
        raise PersonaError(f"{model} has a voice {name!r} of its own; take another name")
    pair = [_named_voice(folder, find_voice(which)) for which in (first, second)]
    if any(voice.embeddings is None for voice in pair):
        from personaplex.engine.prompt import as_embeddings
        from personaplex.model import PersonaPlex

        whole = PersonaPlex.from_pretrained(model)
        pair = [as_embeddings(whole.lm, whole.config, voice) for voice in pair]
    made = blend(pair[0], pair[1], weight, name)
    source = f"{1 - weight:g} {first} + {weight:g} {second}"
    path = voices.add_blend(made, source=source, model=model, codec=folder.codec_fingerprint)
    note(f"wrote {path} ({path.stat().st_size} bytes); --voice {name} speaks like it")


def _named_voice(folder: ModelFolder, name: str) -> Voice:
    from personaplex.checkpoint.voices import SUFFIXES, voice_from_file

    path = Path(name)
    if path.is_file() and path.suffix not in SUFFIXES:
        raise PersonaError(f"{name} is no voice file; `voices add` makes a voice of a recording, and blend takes that")
    return voice_from_file(path, folder.codec_fingerprint) if path.is_file() else folder.voices.load(name)


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete one of your voices."""
    from personaplex.checkpoint.user_voices import UserVoices

    UserVoices(own_voices()).remove(name)
    note(f"removed {name}")


@command.command()
@click.argument("name")
@model_option
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Into a file, not the speaker.")
@click.option("--speaker", metavar="NAME|NUMBER", help="Default: the system's.")
def play(name: str, model: str, output: Path | None, speaker: str | None) -> None:
    """Play what the agent is given of a voice: the recording as the codec keeps it."""
    from personaplex.checkpoint.hub import CODEC_FILES, resolve
    from personaplex.checkpoint.user_voices import UserVoices
    from personaplex.live.sound_card import load_sounddevice, play_sound

    voices = UserVoices(own_voices())
    voices.path(name)
    if output is not None:
        check_format(output)
        check_writable(output)
    else:
        load_sounddevice()
    folder = _folder(resolve(model, CODEC_FILES))
    mimi = folder.load_mimi()
    pcm = np.array(mimi.decode(voices.codes(name, mimi, folder.codec_fingerprint))[0])
    if output is not None:
        write_audio(output, pcm)
        note(f"wrote {output}")
    else:
        play_sound(pcm, int(speaker) if speaker and speaker.isdecimal() else speaker)


def _folder(path: Path) -> ModelFolder:
    from personaplex.checkpoint.folder import ModelFolder

    return ModelFolder(path)


def _ask(consent: bool) -> None:
    """Ask once, here; the file remembers the answer."""
    if consent:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{CONSENT} If so, add --consent")
    if not click.confirm(CONSENT, err=True):
        raise UsageError("nothing was cloned: that needs their consent")

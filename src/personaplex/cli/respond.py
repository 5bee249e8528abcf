"""`personaplex respond`: a recording in, the agent's speech and text out."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from personaplex.audio import LONGEST_SECONDS, check_format, pcm16, read_audio, rms, wav_header, write_audio
from personaplex.cli.options import (
    DEFAULT_PERSONA,
    TALKS_AS_ITSELF,
    check_sampling,
    find_persona,
    find_voice,
    json_option,
    known_voices,
    kv_bits_option,
    model_option,
    note,
    note_blas,
    persona_options,
    role_prompt,
    sampling_changes,
    sampling_options,
)
from personaplex.cli.standard_output import check_stdout, write_stdout
from personaplex.errors import UsageError
from personaplex.files import check_writable
from personaplex.text import PROMPTS
from personaplex.units import FRAME_RATE, FRAME_SECONDS

if TYPE_CHECKING:
    from personaplex.model import PersonaPlex
    from personaplex.persona import Persona
    from personaplex.reply import Reply
    from personaplex.talk import ReplyStream


@click.command("respond")
@click.option("-i", "--input", "source", metavar="FILE", help="The user's speech, any format; - is standard input.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="response.wav",
    show_default=True,
    help="The agent's speech (.wav, .flac, .ogg, .mp3); - writes WAV to standard output.",
)
@model_option
@persona_options
@click.option(
    "--voice",
    metavar="NAME|FILE",
    help="A voice of the model (default the persona's, NATM0, or the first), or a .pt, .safetensors or audio file to "
    "speak like.",
)
@click.option(
    "--system-prompt",
    metavar="NAME|FILE",
    help=f"Another role than the persona's: {', '.join(PROMPTS)}, or a text file.",
)
@click.option("--system-prompt-text", metavar="TEXT", help="The agent's role in your words; empty for none.")
@click.option("--max-steps", type=int, help="Frames (80 ms) to go on after the user's end (default 200).")
@click.option("--max-seconds", type=float, help="The same in seconds.")
@click.option(
    "--stop-on-silence/--no-stop-on-silence",
    default=True,
    show_default=True,
    help="Stop earlier once the agent has answered and fallen silent.",
)
@click.option("--stream", is_flag=True, help="Give out text, and audio with --output -, while it is made.")
@click.option("--chunk-frames", type=int, default=25, show_default=True, help="Frames per piece with --stream.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Fuse the step's graph (default: on a Mac).")
@kv_bits_option
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Both sides in one file (.wav, .flac), and a .json beside it, for `report`.",
)
@click.option("--transcript", is_flag=True, help="Print what the agent said on stdout.")
@json_option
@sampling_options
@click.option(
    "--max-input-seconds", type=float, default=LONGEST_SECONDS, show_default=True, help="Refuse longer recordings."
)
@click.option("--list-voices", is_flag=True, help="Print the model's voices and exit.")
@click.option("--list-prompts", is_flag=True, help="Print the role presets and exit.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="More on stderr: model, prompt, times.")
def command(**options: Any) -> None:
    """Answer a recording: speech in, speech and text out.

    The agent hears the recording and then silence, and speaks when it likes, as in a call; the output starts with the
    user's first frame and runs past the user's end until the agent is silent or --max-steps is reached.
    """
    if options["list_prompts"]:
        _list(PROMPTS, options["as_json"])
        return
    if options["list_voices"]:
        _list(_voices(options["model"]), options["as_json"])
        return
    _check(options)
    user = read_audio(options["source"], options["max_input_seconds"])
    quiet = options["quiet"]
    note_blas(quiet=quiet)
    if rms(user) == 0:
        note("note: the recording is silent; the agent hears nothing", quiet=quiet)
    began = time.perf_counter()
    model = _load(options)
    load_ms = 1000 * (time.perf_counter() - began)
    stream = open_reply(model, user, options)
    began = time.perf_counter()
    first_audio_ms = _drain(stream, options, began)
    if options["record"] is not None:
        _record(stream.reply, user, options)
    _finish(stream.reply, load_ms, first_audio_ms, options)


def _list(entries: list[str] | dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(entries))
    elif isinstance(entries, dict):
        for name, text in entries.items():
            click.echo(f"{name:18} {text}")
    else:
        click.echo("\n".join(entries))


def _voices(model: str) -> list[str]:
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import VOICE_FILES, resolve

    return ModelFolder(resolve(model, VOICE_FILES)).voices.names()


def _check(options: dict[str, Any]) -> None:
    """Everything that can be known to be wrong before minutes of loading."""
    if options["source"] is None:
        raise UsageError("--input is missing: name a recording, or - for standard input")
    if not options["max_input_seconds"] > 0:
        raise UsageError(f"--max-input-seconds is {options['max_input_seconds']}; it must be more than 0")
    if options["max_steps"] is not None and options["max_seconds"] is not None:
        raise UsageError("give --max-steps or --max-seconds, not both")
    if options["system_prompt"] is not None and options["system_prompt_text"] is not None:
        raise UsageError("give --system-prompt or --system-prompt-text, not both")
    check_sampling(options)
    if options["output"] != "-":
        if Path(options["output"]).resolve() == Path(options["source"]).resolve():
            raise UsageError("--output is the recording that --input names; choose another name")
        check_format(Path(options["output"]))
        check_writable(Path(options["output"]))
    elif options["as_json"] or options["transcript"]:
        raise UsageError("--output - writes audio to stdout, where --json and --transcript would print; name a file")
    else:
        check_stdout()
    if options["record"] is not None:
        from personaplex.live.recording import check_alone, check_recording

        if options["record"].resolve() in (Path(options["output"]).resolve(), Path(options["source"]).resolve()):
            raise UsageError("--record names a file of its own, neither --input nor --output")
        check_alone(options["record"], Path(options["output"]), Path(options["source"]))
        check_recording(options["record"])
    options["prompt"] = role_prompt(options)
    options["role"] = find_persona(options)


def _load(options: dict[str, Any]) -> PersonaPlex:
    from personaplex.model import PersonaPlex

    kv_bits = int(options["kv_bits"])
    model = PersonaPlex.from_pretrained(options["model"], compiled=options["compiled"], kv_bits=kv_bits)
    if options["verbose"]:
        lm = model.config.lm
        note(f"model: {model.folder.path} ({lm.num_layers} layers x {lm.dim}, {str(model.lm.dtype).split('.')[-1]})")
    return model


def open_reply(model: PersonaPlex, user: np.ndarray, options: dict[str, Any]) -> ReplyStream:
    """Begin to answer `user` [S] as the options of this command say, checked; `voice` becomes the one that speaks."""
    role: Persona = options["role"]
    named = options["voice"] or role.settings(known_voices(model.list_voices())).voice
    voice: str | None = find_voice(str(named)) if named else model.default_voice
    prompt = role.prompt if options["prompt"] is None else options["prompt"]
    if not model.config.prompts:
        note(TALKS_AS_ITSELF, quiet=options["quiet"])
        voice = prompt = None
    options["voice"] = voice
    stream = model.respond_stream(
        user,
        voice=voice,
        prompt=prompt,
        sampling=model.sampling(**{**role.sampling, **sampling_changes(options)}),
        seed=options["seed"],
        max_steps=options["max_steps"],
        max_seconds=options["max_seconds"],
        stop_on_silence=options["stop_on_silence"],
        chunk_frames=options["chunk_frames"],
    )
    if options["verbose"]:
        read = f"{stream.prompt_frames} frames read in {stream.prefill_ms:.0f} ms"
        note(f"voice: {voice}; seed {stream.seed}; prompt of {read}")
    return stream


def _drain(stream: ReplyStream, options: dict[str, Any], began: float) -> float:
    """Run the reply to its end, giving out what --stream asks for; returns when the first chunk was there, in ms."""
    to_stdout = options["output"] == "-"
    live = options["stream"]
    shows_bar = sys.stderr.isatty() and not options["quiet"] and not live
    first_ms = None
    if to_stdout and live:
        write_stdout(wav_header(None))
    bar = click.progressbar(length=stream.most_frames, label="responding", file=sys.stderr) if shows_bar else None
    with bar or nullcontext():
        if bar is not None:
            stream.on_frame = lambda *_: bar.update(1)
        for chunk in stream:
            first_ms = first_ms if first_ms is not None else 1000 * (time.perf_counter() - began)
            if live and to_stdout:
                write_stdout(pcm16(chunk.audio).tobytes())
            if live and not options["as_json"] and chunk.text.strip():
                at = chunk.first_frame / FRAME_RATE
                note(f"[{at:6.2f} s] {chunk.text.strip()}", quiet=options["quiet"])
    assert first_ms is not None
    return first_ms


def _record(reply: Reply, user: np.ndarray, options: dict[str, Any]) -> None:
    """As `talk --record` does, with no playout between: a frame is heard as soon as the user's is known."""
    from personaplex.live.recording import Recording

    about = {"left": "agent", "right": "user", "model": options["model"], "mode": "respond"}
    about |= {"persona": options["persona"] or DEFAULT_PERSONA, "voice": options["voice"], "seed": reply.seed}
    recording = Recording(options["record"], about)
    heard = np.zeros(len(reply.audio), np.float32)
    heard[: len(user)] = user[: len(heard)]
    recording.add(reply.audio, heard)
    for at, text in enumerate(reply.texts):
        if text:
            recording.note(at * FRAME_SECONDS, "agent text", text=text)
    for seconds, measure in zip(reply.steps.at, reply.steps.measures, strict=True):
        recording.step(seconds, measure)
    recording.close(stopped=reply.stopped)


def _finish(reply: Reply, load_ms: float, first_audio_ms: float, options: dict[str, Any]) -> None:
    output = None if options["output"] == "-" else Path(options["output"])
    if output is not None:
        write_audio(output, reply.audio)
    elif not options["stream"]:
        write_stdout(wav_header(len(reply.audio)) + pcm16(reply.audio).tobytes())
    t = reply.timings
    if options["as_json"]:
        report = {
            "input": options["source"],
            "output": str(output),
            "model": options["model"],
            "persona": options["persona"] or DEFAULT_PERSONA,
            "voice": options["voice"],
            "seed": reply.seed,
            "text": reply.text,
            "texts": [[i, text] for i, text in enumerate(reply.texts) if text],
            "tokens": reply.tokens[0].tolist(),
            "stopped": reply.stopped,
            "input_seconds": round(reply.user_frames / FRAME_RATE, 3),
            "output_seconds": round(reply.seconds, 3),
            "frames": t.n_frames,
            "rtf": round(t.rtf, 4),
            "load_ms": round(load_ms, 2),
            "prefill_ms": round(t.prefill_ms, 2),
            "first_chunk_ms": round(first_audio_ms, 2),
            "step_ms_p50": round(t.percentile(50), 3),
            "step_ms_p99": round(t.percentile(99), 3),
            "steps": reply.steps.as_json(),
        }
        click.echo(json.dumps(report))
    elif options["transcript"]:
        click.echo(reply.text)
    quiet = options["quiet"] or options["as_json"]
    if output is not None:
        ended = {"silence": "until silence", "limit": "until the limit"}.get(reply.stopped, reply.stopped)
        note(
            f"wrote {output}: {reply.seconds:.1f} s ({ended}), seed {reply.seed}, rtf {t.rtf:.2f}, "
            f"step p50 {t.percentile(50):.1f} ms p99 {t.percentile(99):.1f} ms",
            quiet=quiet,
        )

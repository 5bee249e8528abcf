"""Pack finished training runs into the folder of the bundled model: int8 weights, configuration, tokenizer, voices.

`python scripts/pack_nano.py --codec RUN --lm RUN --bank FILE --tokenizer FILE --out src/personaplex/nano`. The runs
hold mimi.safetensors and model.safetensors, and their config.json the fields `mimi` and `lm`; the bank gives the codes
of silence, of the tone and of each voice. It prints what each file weighs and what int8 changed, and refuses a model
of more than 24 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import personaplex  # before mlx, for its BLAS

import mlx.core as mx  # isort: skip
import numpy as np

from personaplex.audio import read_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import load_lm, load_mimi
from personaplex.checkpoint.store import write_config, write_int8
from personaplex.checkpoint.tensors import TensorFile
from personaplex.config import ModelConfig, SamplingDefaults, from_json
from personaplex.engine.prompt import compose
from personaplex.speech import AGENTS
from personaplex.train.bank import Bank
from personaplex.voice import Voice

MOST_BYTES = 24_000_000
VOICE_FRAMES = 30
"""Within what training gives for a voice prompt (22 to 37 frames)."""

SAMPLING = SamplingDefaults(text_temp=0.0, audio_temp=0.7)
"""A closed world has one right answer: its text is greedy."""

LM_FILE, MIMI_FILE, CONFIG_FILE = "model.safetensors", "mimi.safetensors", "config.json"
QUESTION = Path(__file__).parents[1] / "examples" / "question.wav"

Voices = dict[str, np.ndarray]


def config_of(codec: Path, lm: Path, bank: Bank) -> ModelConfig:
    """The configuration that two runs and the bank between them make. Raises ConfigError naming the field."""
    fields = {
        "lm": json.loads((lm / CONFIG_FILE).read_text(encoding="utf-8"))["lm"],
        "mimi": json.loads((codec / CONFIG_FILE).read_text(encoding="utf-8"))["mimi"],
        "silence_codes": bank.silence.tolist(),
        "sine_codes": bank.sine.tolist(),
        "sampling": vars(SAMPLING),
        "version": f"nano {personaplex.__version__}",
    }
    return from_json(ModelConfig, fields, f"the configuration of {codec} and {lm}")


def voices_of(bank: Bank) -> Voices:
    """The voice prompt [30, 8] of each agent, made as in training: from greetings, one after the other."""
    clips, voices = bank.index(), {}
    for number, name in enumerate(AGENTS):
        greetings = clips.get((number, "greet"), {})
        codes = [bank.clip(i) for key in sorted(greetings) for i in greetings[key]]
        if sum(map(len, codes)) < VOICE_FRAMES:
            sys.exit(f"the bank holds too few greetings by {name}")
        voices[name] = np.concatenate(codes)[:VOICE_FRAMES]
    return voices


def pack(
    codec: Path, lm: Path, config: ModelConfig, voices: Voices, tokenizer: Path, out: Path, most_bytes: int = MOST_BYTES
) -> None:
    """Write the folder `out`, first under another name beside it; what stands there stays if anything is wrong.

    Raises CheckpointError or PersonaError for what does not fit together, SystemExit above `most_bytes`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        work = Path(name) / out.name
        (work / "voices").mkdir(parents=True)
        if (out / "README.md").exists():
            shutil.copy(out / "README.md", work)
        write_config(work / CONFIG_FILE, config)
        write_int8(work / LM_FILE, tensors(lm / LM_FILE))
        if "lm" in json.loads((codec / CONFIG_FILE).read_text(encoding="utf-8")):  # a model's codec is stored already
            shutil.copy(codec / MIMI_FILE, work)
        else:
            write_int8(work / MIMI_FILE, tensors(codec / MIMI_FILE))
        shutil.copy(tokenizer, work / "tokenizer.model")
        for voice, codes in voices.items():
            compose(config, Voice(voice, codes=codes))
            stored = mx.array(codes.T[None].astype(np.int16))
            mx.save_safetensors(str(work / "voices" / f"{voice}.safetensors"), {"codes": stored})
        report_sizes(work, most_bytes)
        ModelFolder(work).load_tokenizer()
        report_change(codec / MIMI_FILE, lm / LM_FILE, work)
        if out.exists():
            out.rename(Path(name) / "before")
        work.rename(out)


def tensors(path: Path) -> dict[str, mx.array]:
    """Every tensor of a file."""
    file = TensorFile(path)
    return {name: file.take(name) for name in file.entries}


def report_sizes(folder: Path, most_bytes: int) -> None:
    """Print the bytes of every file. Raises SystemExit when together they are more than `most_bytes`."""
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    for path, size in sizes.items():
        sys.stdout.write(f"{size:>12,}  {path.relative_to(folder)}\n")
    total = sum(sizes.values())
    sys.stdout.write(f"{total:>12,}  bytes in all; {most_bytes:,} are allowed\n")
    if total > most_bytes:
        sys.exit(f"{total:,} bytes, and that is more than {most_bytes:,}; nothing was written")


def report_change(mimi_file: Path, lm_file: Path, packed: Path) -> None:
    """Print how far the packed model is from the float one, on the example's question."""
    folder = ModelFolder(packed)
    config = folder.config
    before, after = load_mimi(mimi_file, config.mimi), folder.load_mimi()
    pcm = mx.array(read_audio(QUESTION))[None]
    codes, again = before.encode(pcm), after.encode(pcm)
    decoded, changed = before.decode(codes), after.decode(codes)
    noise = mx.square(decoded - changed).sum() / mx.maximum(mx.square(decoded).sum(), 1e-20)
    same_codes = np.array((codes == again).mean(axis=(0, 2)))
    pad = mx.full((1, 1, codes.shape[2]), config.lm.existing_text_padding_id)
    silence = mx.broadcast_to(mx.array(config.silence_codes)[None, :, None], codes.shape)
    frames = mx.concatenate([pad, silence, codes], axis=1)
    text, text_before = (
        model.teacher_forced(frames)[0].argmax(-1)
        for model in (folder.load_lm(dtype=mx.float32), load_lm(lm_file, config.lm, dtype=mx.float32))
    )
    sys.stdout.write(
        "int8 against float, on the question of the example:\n"
        f"  codes that stay the same, by codebook: {' '.join(f'{share:.2f}' for share in same_codes)}\n"
        f"  noise in the same codes decoded: {10 * float(mx.log10(mx.maximum(noise, 1e-20))):.1f} dB\n"
        f"  likeliest text token the same: {float((text == text_before).mean()):.3f} of the frames\n"
    )


def main() -> None:
    """Parse the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--codec", type=Path, required=True, help="run with mimi.safetensors, or a model to keep that of"
    )
    parser.add_argument("--lm", type=Path, required=True, help="run with model.safetensors")
    parser.add_argument("--bank", type=Path, required=True, help="the clip bank that the language model was trained on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    bank = Bank.read(options.bank)
    config = config_of(options.codec, options.lm, bank)
    pack(options.codec, options.lm, config, voices_of(bank), options.tokenizer, options.out)


if __name__ == "__main__":
    main()

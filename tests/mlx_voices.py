"""Qwen3-TTS and CosyVoice behind our seam: a program for the environments that have them (`scripts/engines-venv`).

`python -m tests.mlx_voices qwen FOLDER` makes a Qwen3-TTS of the real form with random weights, a few kB of them, and
has it speak; `cosyvoice RECORDING` checks each call against the real package. Prints one JSON object.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import personaplex  # noqa: F401 - before mlx: it loads a fast BLAS where one is needed

import mlx.core as mx  # isort: skip

import numpy as np
from mlx_audio.tts import utils
from mlx_audio.tts.models.base import GenerationResult

from personaplex.cascade.engine import Synthesiser
from personaplex.cascade.registry import open_synthesiser
from personaplex.errors import PersonaPlexError
from personaplex.nn.state import parameters

SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "num_code_groups": 4,
}  # fmt: skip
N_CODES = 64
# The last 1024 of the talker's tokens are its marks, which it never says.
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_tts",
    "tts_model_type": "custom_voice",
    "im_start_token_id": 60, "im_end_token_id": 61,
    "tts_pad_token_id": 62, "tts_bos_token_id": 63, "tts_eos_token_id": 64,
    "talker_config": SMALL | {
        "vocab_size": N_CODES + 1024, "text_hidden_size": 16, "text_vocab_size": 70,
        "codec_eos_token_id": 1000, "codec_think_id": 1001, "codec_nothink_id": 1002, "codec_think_bos_id": 1003,
        "codec_think_eos_id": 1004, "codec_pad_id": 1005, "codec_bos_id": 1006,
        "codec_language_id": {"english": 1010, "german": 1011}, "spk_id": {"anna": 1020, "bert": 1021},
        "rope_scaling": {"interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"},
        "code_predictor_config": SMALL | {"vocab_size": N_CODES},
    },
}  # fmt: skip
DECODER = {
    "latent_dim": 16, "codebook_dim": 8, "codebook_size": N_CODES, "decoder_dim": 16, "hidden_size": 8,
    "intermediate_size": 16, "max_position_embeddings": 800, "head_dim": 4, "num_attention_heads": 2,
    "num_hidden_layers": 1, "num_key_value_heads": 2, "num_quantizers": 4, "semantic_codebook_size": N_CODES,
    "vector_quantization_hidden_dimension": 8,
}  # fmt: skip
MOST_TOKENS = 20


def write_qwen(folder: Path, **changes: Any) -> Path:
    """A model folder as `load_model` reads it."""
    from mlx_audio.tts.models.qwen3_tts.config import ModelConfig, Qwen3TTSTokenizerConfig
    from mlx_audio.tts.models.qwen3_tts.qwen3_tts import Model
    from mlx_audio.tts.models.qwen3_tts.speech_tokenizer import Qwen3TTSSpeechTokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers

    mx.random.seed(1)
    codec = folder / "speech_tokenizer"
    codec.mkdir(parents=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": MOST_TOKENS, "temperature": 0}))
    mx.save_safetensors(str(folder / "model.safetensors"), parameters(Model(ModelConfig.from_dict(config))))
    (codec / "config.json").write_text(json.dumps({"decoder_config": DECODER}))
    whole = Qwen3TTSSpeechTokenizer(Qwen3TTSTokenizerConfig(decoder_config=dict(DECODER)))
    # The rest is random anyhow, and the loader would take our small convolutions for PyTorch's.
    norms = {name: value for name, value in parameters(whole).items() if name.endswith("layernorm.weight")}
    mx.save_safetensors(str(codec / "model.safetensors"), norms)
    vocabulary = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,!?\n")} | {"<unk>": 59}
    letters = Tokenizer(models.WordLevel(vocabulary | {"<|im_start|>": 60, "<|im_end|>": 61}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    letters.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def refused(call: Any, *arguments: Any) -> str:
    """The error in one line; empty if there was none."""
    try:
        made = call(*arguments)
        if not hasattr(made, "voices"):
            list(made)
    except PersonaPlexError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def qwen(folder: Path) -> dict[str, Any]:
    from mlx_audio.tts.models.qwen3_tts.qwen3_tts import Model

    model = write_qwen(folder / "custom")
    threads: set[str] = set()
    generate = Model.generate

    def watched(self: Any, **request: Any) -> Iterator[Any]:
        check_request(generate, request)
        for result in generate(self, **request):
            threads.add(threading.current_thread().name)
            yield result

    Model.generate = watched
    voice = open_synthesiser(f"qwen3-tts:{model}")
    pieces = list(voice.say("hello there.", "bert", "de"))
    cut = voice.say("hello there.")
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    base = open_synthesiser(
        f"qwen3-tts:{write_qwen(folder / 'base', tts_model_type='base', speaker_encoder_config={'enc_dim': 16})}"
    )
    broken = write_qwen(folder / "broken")
    (broken / "tokenizer.json").unlink()
    return {
        "voices": voice.voices,
        "languages": voice.languages,
        "pieces": [(len(piece.pcm), piece.rate, str(piece.pcm.dtype), bool(piece.pcm.any())) for piece in pieces],
        "again": sum(len(piece.pcm) for piece in voice.say("and on.")),
        "cloned": sum(len(piece.pcm) for piece in base.say("hello.", str(recording(folder)))),
        "threads": sorted(threads),
        "unknown voice": refused(voice.say, "a", "nobody"),
        "unknown language": refused(voice.say, "a", None, "fr"),
        "nowhere": refused(open_synthesiser, f"qwen3-tts:{folder / 'nowhere'}"),
        "design": refused(
            open_synthesiser, f"qwen3-tts:{write_qwen(folder / 'design', tts_model_type='voice_design')}"
        ),
        "broken": refused(open_synthesiser, f"qwen3-tts:{broken}"),
    }


def recording(folder: Path) -> Path:
    from personaplex.audio import write_audio

    path = folder / "voice.wav"
    write_audio(path, np.sin(np.arange(48_000) / 20).astype(np.float32))
    path.with_suffix(".txt").write_text("what is said in it\n")
    return path


def check_request(generate: Any, request: dict[str, Any]) -> None:
    """Every argument is one that the real function names: it would swallow others without a word."""
    named = {
        name
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    }
    assert set(request) <= named, set(request) - named
    inspect.signature(generate).bind(None, **request)


def cosyvoice(folder: Path) -> dict[str, Any]:
    """Its weights are in many files of many forms: the calls are checked, and nothing is computed."""
    from mlx_audio.tts.models.cosyvoice3 import Model, ModelConfig

    asked: list[dict[str, Any]] = []

    class Mute(Model):
        def generate(self, **request: Any) -> Iterator[GenerationResult]:
            check_request(Model.generate, request)
            asked.append({name: str(value) if name != "ref_audio" else value.shape for name, value in request.items()})
            fields = dict.fromkeys(inspect.signature(GenerationResult).parameters, 0)
            yield GenerationResult(**fields | {"audio": mx.ones(99, mx.bfloat16), "sample_rate": self.sample_rate})

    assert inspect.signature(utils.load_model).bind("a folder")
    real = utils.load_model
    utils.load_model = lambda _: Mute(ModelConfig())
    voice: Synthesiser = open_synthesiser("cosyvoice:a-folder")
    (piece,) = voice.say("Good day.", str(recording(folder)), "en")
    utils.load_model = real
    return {
        "asked": asked,
        "piece": (len(piece.pcm), piece.rate, str(piece.pcm.dtype)),
        "no voice": refused(voice.say, "a"),
        "unknown language": refused(voice.say, "a", str(recording(folder)), "xx"),
        "unknown voice": refused(voice.say, "a", "nobody"),
        "nowhere": refused(open_synthesiser, f"cosyvoice:{folder / 'nowhere'}"),
    }


if __name__ == "__main__":
    report = {"qwen": qwen, "cosyvoice": cosyvoice}[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write(json.dumps(report))

"""A Whisper model of random weights, written with CTranslate2's own specs, that says the same words to any sound.

The vocabulary has the real one's size and special tokens. What is said next is a matter of the position alone: each
position's vector is large, and the embedding of the token to be said there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs.whisper_spec import WhisperSpec
from faster_whisper.tokenizer import _LANGUAGE_CODES as LANGUAGES
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

WORDS = ("good", "morning", "everybody")
LANGUAGE = "de"
SECONDS = 1.2

DIM, HEADS, LAYERS, MELS = 32, 2, 1, 80
N_TEXT, N_TIMES = 50_257, 1_501


def vocabulary() -> list[str]:
    """All tokens, by id."""
    letters = sorted(ByteLevel.alphabet())
    spoken = [f"Ġ{word}" for word in WORDS]
    unused = [f"unused{i}" for i in range(N_TEXT - len(letters) - len(spoken) - 1)]
    text = [*letters, *spoken, *unused, ""]  # by the last, CTranslate2 knows that this is not the English model's
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    languages = sorted(set(LANGUAGES) - {"yue"})  # which came later, with another size
    times = [f"{0.02 * i:.2f}" for i in range(N_TIMES)]
    return text + [f"<|{name}|>" for name in ["endoftext", "startoftranscript", *languages, *tasks, *times]]


def write_whisper(folder: Path) -> Path:
    """Write model and tokenizer."""
    tokens = vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    spec: Any = WhisperSpec(LAYERS, HEADS, LAYERS, HEADS)
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), np.float32)

    def linear(layer: Any, *shape: int) -> None:
        layer.weight, layer.bias = weight(*shape), weight(shape[0])

    def norm(layer: Any, scale: float = 1) -> None:
        layer.gamma = np.full(DIM, scale, np.float32)
        layer.beta = np.zeros(DIM, np.float32)

    linear(spec.encoder.conv1, DIM, MELS, 3)
    linear(spec.encoder.conv2, DIM, DIM, 3)
    spec.encoder.position_encodings.encodings = weight(1500, DIM)
    for part in (spec.encoder, spec.decoder):
        norm(part.layer_norm, 20 if part is spec.decoder else 1)
        for layer in part.layer:
            for attention, shapes in (
                (layer.self_attention, [3 * DIM, DIM]),
                (getattr(layer, "attention", None), [DIM, 2 * DIM, DIM]),
            ):
                if attention is not None:
                    norm(attention.layer_norm)
                    for projection, n_out in zip(attention.linear, shapes, strict=True):
                        linear(projection, n_out, DIM)
            norm(layer.ffn.layer_norm)
            linear(layer.ffn.linear_0, 2 * DIM, DIM)
            linear(layer.ffn.linear_1, DIM, 2 * DIM)
    embeddings = rng.normal(size=(len(tokens), DIM))
    embeddings -= embeddings.mean(axis=1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    spec.decoder.embeddings.weight = spec.decoder.projection.weight = embeddings.astype(np.float32)
    said = [f"<|{LANGUAGE}|>", "<|transcribe|>", "<|0.00|>", *(f"Ġ{word}" for word in WORDS)]
    said += [f"<|{SECONDS:.2f}|>", "<|endoftext|>"]
    at = [ids[token] for token in said] + [ids["<|endoftext|>"]] * (448 - len(said))
    spec.decoder.position_encodings.encodings = (100 * embeddings[at]).astype(np.float32)

    spec.register_vocabulary(tokens)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], [ids["<|endoftext|>"]]
    spec.config.lang_ids = [ids[f"<|{code}|>"] for code in LANGUAGES if code != "yue"]
    spec.config.alignment_heads = [[0, 0], [0, 1]]
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))

    tokenizer = Tokenizer(BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": MELS}))
    return folder

"""Recognisers of .venv-engines at work on tiny random models, made here: `python -m tests.engines_at_work FOLDER`.

Prints a JSON object: what each of them heard in two seconds of noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.cascade import parakeet  # before mlx: it loads a fast BLAS where one is needed

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

from personaplex.cascade.registry import open_recogniser
from personaplex.cascade.whole import RATE

NOISE = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)


def save(folder: Path, model: Any, config: dict[str, Any], name: str, dtype: mx.Dtype = mx.float32) -> Path:
    weights = dict(tree_flatten(model.parameters()))
    weights = {key: leaf if leaf.dtype == mx.int64 else leaf.astype(dtype) for key, leaf in weights.items()}
    mx.save_safetensors(str(folder / name), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_mlx_whisper(folder: Path) -> Path:
    """As tests/whisper_model.py does for CTranslate2: each position says its own token, to any sound."""
    from mlx_whisper.tokenizer import get_tokenizer
    from mlx_whisper.whisper import ModelDimensions, Whisper

    config = {
        "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 1,
        "n_vocab": 51_865, "n_text_ctx": 448, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1,
    }  # fmt: skip
    model = Whisper(ModelDimensions(**config), mx.float16)
    tokenizer = get_tokenizer(True, num_languages=99, language="de", task="transcribe")
    said = [tokenizer.sot_sequence[1], tokenizer.transcribe, tokenizer.timestamp_begin]
    said += [*tokenizer.encode(" good morning everybody"), tokenizer.timestamp_begin + 60, tokenizer.eot]
    embeddings = np.random.default_rng(0).normal(size=(51_865, 32))
    embeddings -= embeddings.mean(axis=1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    model.decoder.token_embedding.weight = mx.array(embeddings)
    model.decoder.positional_embedding = mx.array(100 * embeddings[[*said, *[tokenizer.eot] * (448 - len(said))]])
    model.decoder.ln.weight = mx.full(32, 20.0)
    return save(folder, model, config, "weights.safetensors", mx.float16)


def write_parakeet(folder: Path) -> Path:
    """It says "good" every 4 frames."""
    from parakeet_mlx.utils import from_config

    config = {
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "model_defaults": {"tdt_durations": [0, 4]},
        "preprocessor": {
            "sample_rate": RATE, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01,
            "window": "hann", "features": 80, "n_fft": 512, "dither": 0.0,
        },
        "encoder": {
            "feat_in": 80, "n_layers": 1, "d_model": 32, "n_heads": 2, "ff_expansion_factor": 2,
            "subsampling_factor": 8, "self_attention_model": "rel_pos", "subsampling": "dw_striding",
            "conv_kernel_size": 9, "subsampling_conv_channels": 16, "pos_emb_max_len": 500,
        },
        "decoder": {"blank_as_pad": True, "vocab_size": 2, "prednet": {"pred_hidden": 16, "pred_rnn_layers": 1}},
        "joint": {
            "num_classes": 2, "vocabulary": ["▁good", "ness"], "num_extra_outputs": 2,
            "jointnet": {"joint_hidden": 16, "activation": "relu", "encoder_hidden": 32, "pred_hidden": 16},
        },
        "decoding": {"model_type": "tdt", "durations": [0, 4], "greedy": {"max_symbols": 10}},
    }  # fmt: skip
    model = from_config(config)
    model.joint.joint_net[2].bias = mx.array([50.0, 0, 0, 0, 50.0])
    return save(folder, model, config, "model.safetensors")


def write_qwen(folder: Path) -> Path:
    """It repeats the end of its prompt, as nothing tells one position from another."""
    from mlx_audio.stt.models.qwen3_asr import Model, ModelConfig
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    special = ["<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<asr_text>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": [t for t in special if t != "<asr_text>"]})
    fast.add_tokens(["<asr_text>"])
    fast.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    config = {
        "model_type": "qwen3_asr", "support_languages": ["German", "English"],
        **{f"{name}_token_id": fast.convert_tokens_to_ids(f"<|{token}|>") for name, token in
           (("audio", "audio_pad"), ("audio_start", "audio_start"), ("audio_end", "audio_end"))},
        "audio_config": {
            "num_mel_bins": 80, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "d_model": 16, "output_dim": 16, "downsample_hidden_size": 8,
        },
        "text_config": {
            "vocab_size": len(fast), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        },
    }  # fmt: skip
    return save(folder, Model(ModelConfig.from_dict(config)), config, "model.safetensors")


WRITERS = {"mlx-whisper": write_mlx_whisper, "parakeet-mlx": write_parakeet, "qwen3-asr": write_qwen}


def hear(engine: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    mx.random.seed(0)
    recogniser = open_recogniser(f"{engine}:{WRITERS[engine](folder)}")
    heard = []
    for language in (None, recogniser.languages[0]):
        listening = recogniser.listen(language)
        listening.push(NOISE)
        found = listening.finish()
        heard.append({"text": found.text, "words": found.words, "language": found.language})
    recogniser.close()
    return {"languages": recogniser.languages, "heard": heard}


def joined() -> list[Any]:
    """Word pieces of Parakeet's, made into words."""
    from parakeet_mlx.alignment import AlignedToken, sentences_to_result, tokens_to_sentences

    pieces = [" Good", "ness", ",", " me", "."]
    tokens = [AlignedToken(i, text, 0.5 * i, 0.25) for i, text in enumerate(pieces)]
    return list(parakeet._words(sentences_to_result(tokens_to_sentences(tokens))))


if __name__ == "__main__":
    found = {engine: hear(engine, Path(sys.argv[1]) / engine) for engine in WRITERS}
    sys.stdout.write(json.dumps({**found, "joined": joined()}))

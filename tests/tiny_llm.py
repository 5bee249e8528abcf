"""Language models of some 300 kB for `mlx-lm`: random ones, and ones that always recite the same words."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as Join
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace

DIM, N_LAYERS, N_HEADS, FEED = 64, 2, 4, 64
WORDS = "Good day. It is noon. one two three four five six seven eight nine ten".split()
SPECIAL = ["<unk>", "<end>", "<system>", "<user>", "<assistant>", "<think>", "</think>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_llm(
    folder: Path, says: str | None = None, *, template: str | None = TEMPLATE, context: int = 2048, again: bool = False
) -> Path:
    """A llama that says `says` whatever it is asked, and ends, or begins `again`; without it, words as they are drawn.

    A token's successor is read off its embedding: attention and MLP are there, and add nothing.
    """
    folder.mkdir(parents=True)
    spoken = (says or "").split()
    assert len(set(spoken)) == len(spoken), "a word has one successor"
    vocabulary = SPECIAL + [f"▁{word}" for word in dict.fromkeys([*WORDS, *spoken]) if word not in SPECIAL]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), Join()
    tokenizer.add_special_tokens(SPECIAL[:5])
    tokenizer.add_tokens(SPECIAL[5:])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "unk_token": "<unk>"}
    if template is not None:
        about["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": DIM, "intermediate_size": FEED,
        "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "num_key_value_heads": N_HEADS,
        "rms_norm_eps": 1e-5, "vocab_size": len(ids), "max_position_embeddings": context, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "eos_token_id": ids["<end>"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(ids, spoken, again=again), {"format": "mlx"})
    return folder


def _weights(ids: dict[str, int], spoken: list[str], *, again: bool) -> dict[str, mx.array]:
    keys = iter(mx.random.split(mx.random.key(7), 99))

    def normal(*shape: int, scale: float = 1.0) -> mx.array:
        return (scale * mx.random.normal(shape, key=next(keys))).astype(mx.float32)

    embedding = normal(len(ids), DIM)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": mx.ones(DIM)}
    out = 0.0 if spoken else 0.05
    for layer in range(N_LAYERS):
        at = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            scale = out if name == "o" else 0.1
            weights[f"{at}self_attn.{name}_proj.weight"] = normal(DIM, DIM, scale=scale)
        weights[f"{at}mlp.gate_proj.weight"] = normal(FEED, DIM, scale=0.1)
        weights[f"{at}mlp.up_proj.weight"] = normal(FEED, DIM, scale=0.1)
        weights[f"{at}mlp.down_proj.weight"] = normal(DIM, FEED, scale=out)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{name}.weight"] = mx.ones(DIM)
    head = normal(len(ids), DIM, scale=0.05)
    tokens = [ids.get(word, ids.get(f"▁{word}", 0)) for word in spoken]
    chain = [ids["<assistant>"], *tokens, tokens[0] if again else ids["<end>"]] if spoken else []
    for before, after in pairwise(chain):
        head = head.at[after].add(embedding[before] / DIM * 40)
    if not spoken:  # every state has one direction in common, and what is no word lies against it
        embedding = weights["model.embed_tokens.weight"] = embedding + 1.0
        head = head.at[mx.array([ids[token] for token in SPECIAL])].add(-0.3)
    weights["lm_head.weight"] = head
    return weights

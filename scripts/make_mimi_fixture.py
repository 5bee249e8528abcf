"""Make tests/fixtures/transformers-mimi: a tiny random `MimiModel`, and what transformers makes of a sound with it.

`python scripts/make_mimi_fixture.py` in an environment that has torch and transformers, which this project does not
need (made with torch 2.15.0 and transformers 5.23.0). `normed.safetensors` is the same model with a weight norm on
every convolution, half of them stored as PyTorch does today and half as it used to. Beside the folder,
keys_transformers_mimi.json holds every name and shape of a `MimiModel` of the real size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / "transformers-mimi"
FRAMES = 14
"""Longer than the window below, so that it slides."""


def tiny_config() -> MimiConfig:
    """Every size differs from every other one, as far as it may."""
    return MimiConfig(
        num_filters=4,
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=8,
        num_hidden_layers=2,
        intermediate_size=40,
        sliding_window=9,
        codebook_dim=10,
        vector_quantization_hidden_dimension=10,
        codebook_size=64,
        num_quantizers=11,
        upsample_groups=24,
        _attn_implementation="eager",
    )


def randomise(model: MimiModel) -> None:
    """Values of such sizes that every part is heard, and codebooks that are all used."""
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("layer_scale.scale"):
                value.uniform_(0.3, 0.7)
            elif name.endswith("embed_sum"):
                value.normal_(std=3.0)
            elif name.endswith("cluster_usage"):
                value.uniform_(0.5, 9.0)
            elif "layernorm.weight" in name:
                value.uniform_(0.6, 1.4)
            elif "layernorm.bias" in name or name.endswith("conv.bias"):
                value.normal_(std=0.1)


def normed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with every convolution's weight as a length and a direction."""
    found = {}
    for i, (name, weight) in enumerate(sorted(tensors.items())):
        if not name.endswith("conv.weight"):
            found[name] = weight
            continue
        layer = torch.nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
        layer.weight.data.copy_(weight)
        new = torch.nn.utils.parametrizations.weight_norm(layer).state_dict()
        length = new["parametrizations.weight.original0"]
        # A direction of any length means the same.
        direction = new["parametrizations.weight.original1"] * (1 + i % 3)
        stem = name.removesuffix("weight")
        old = i % 2 == 0
        found[name + "_g" if old else f"{stem}parametrizations.weight.original0"] = length.contiguous()
        found[name + "_v" if old else f"{stem}parametrizations.weight.original1"] = direction.contiguous()
    return found


def real_shapes() -> dict[str, list[int]]:
    """Names and shapes as transformers writes a codec of the real size."""
    with tempfile.TemporaryDirectory() as folder:
        MimiModel(MimiConfig()).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def main() -> None:
    """Write the folder anew."""
    torch.manual_seed(7)
    model = MimiModel(tiny_config()).eval()
    randomise(model)
    shutil.rmtree(FOLDER, ignore_errors=True)
    model.save_pretrained(FOLDER)
    time = torch.arange(FRAMES * 1920) / 24_000
    pcm = 0.3 * torch.sin(2 * torch.pi * (150 + 300 * time) * time) + 0.05 * torch.randn(len(time))
    with torch.no_grad():
        codes = model.encode(pcm[None, None], num_quantizers=8).audio_codes
        decoded = model.decode(codes).audio_values
    expected = {"pcm": pcm[None], "codes": codes.to(torch.int32), "decoded": decoded[0].contiguous()}
    save_file(expected, FOLDER / "expected.safetensors")
    save_file(normed(load_file(FOLDER / "model.safetensors")), FOLDER / "normed.safetensors")
    FOLDER.with_name("keys_transformers_mimi.json").write_text(json.dumps(real_shapes(), indent=0) + "\n")


if __name__ == "__main__":
    main()

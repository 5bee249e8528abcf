"""What `--model` takes: layouts that are told apart, Moshi without prompts, and one error for everything else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import constants

from personaplex import Engine, PersonaPlex, Settings
from personaplex.audio import write_audio
from personaplex.checkpoint import repository
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import expected_tensors
from personaplex.checkpoint.rules import lm_rules
from personaplex.cli.main import main
from personaplex.config import LMConfig
from personaplex.conversation import Error
from personaplex.errors import CheckpointError, ConfigError, PersonaError
from tests.conftest import FIXTURES, edit_config, same
from tests.hub_server import Hub, Repo, ask, running
from tests.unit.test_checkpoint import moshi_folder

KYUTAIS = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_causal": True, "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}  # fmt: skip


def headers_only(path: Path, config: LMConfig) -> None:
    """A file of the real names, shapes and size, all holes."""
    header, at = {}, 0
    for name, shape in expected_tensors(lm_rules(config, 8)).items():
        assert isinstance(shape, tuple)
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_the_7bs_folder_as_it_is_published(tmp_path: Path) -> None:
    headers_only(tmp_path / "model.safetensors", LMConfig())
    (tmp_path / "config.json").write_text('{"model_type": "personaplex", "version": "7b-v1"}')
    config = ModelFolder(tmp_path).config
    assert (config.lm, config.prompts, config.version) == (LMConfig(), True, "7b-v1")


@pytest.mark.parametrize("about", [None, {}, {"model_type": "moshi"}])
def test_moshi_is_known_by_its_tensors(tmp_path: Path, about: dict[str, object] | None) -> None:
    """Its folder may hold no config.json, or one that says hardly anything."""
    headers_only(tmp_path / "model.safetensors", LMConfig(dep_q=8))
    if about is not None:
        (tmp_path / "config.json").write_text(json.dumps(about))
    config = ModelFolder(tmp_path).config
    assert (config.lm, config.prompts) == (LMConfig(dep_q=8), False)


def test_kyutais_own_config_is_read(tmp_path: Path) -> None:
    names = {"moshi_name": "model.safetensors", "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors"}
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model_type": "moshi", **KYUTAIS, **names, "conditioners": {}, "cross_attention": False})
    )
    config = ModelFolder(tmp_path).config
    assert config.lm == LMConfig(dep_q=8, depformer_context=8, depformer_max_period=10_000.0) and not config.prompts
    path.write_text(json.dumps(KYUTAIS | {"dep_q": 16}))
    assert ModelFolder(tmp_path).config.prompts, "16 steps are PersonaPlex, whoever describes it"
    for change, says in (
        ({"cross_attention": True}, "unknown field 'cross_attention'"),
        ({"dep_q": 12}, "dep_q is 12; 8 .Moshi. or 16"),
        ({"n_q": 8}, "n_q is 8; only 16"),
        ({"dim": "4096"}, "dim: expected int"),
    ):
        path.write_text(json.dumps(KYUTAIS | change))
        with pytest.raises(ConfigError, match=says):
            _ = ModelFolder(tmp_path).config


@pytest.mark.parametrize(
    "about", [{"model_type": "hibiki"}, {"model_type": "moshi", "depth_decoder_config": {"x": 1}}, {"model_type": 7}]
)
def test_any_other_layout_names_those_that_work(tmp_path: Path, about: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(about))
    says = r"another kind .*; these work: nano, a folder .* nvidia/personaplex-7b-v1, .* kyutai/moshika-pytorch-bf16"
    with pytest.raises(CheckpointError, match=says):
        _ = ModelFolder(tmp_path).config


def test_weights_of_another_network_are_no_model(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"text_emb.weight": mx.zeros((2, 2))})
    with pytest.raises(CheckpointError, match="holds no PersonaPlex and no Moshi; these work"):
        ModelFolder(tmp_path).load_lm()
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors; these work"):
        ModelFolder(tmp_path).load_lm()


@pytest.fixture
def moshi(tiny_folder: Path) -> Path:
    """The tiny model as a Moshi: 8 steps, no voices, no prompts."""
    (tiny_folder / "voices" / "VOICE0.pt").unlink()
    (tiny_folder / "voices").rmdir()
    moshi_folder(tiny_folder)
    edit_config(tiny_folder, prompts=False)
    return tiny_folder


def test_moshi_talks_and_takes_neither_voice_nor_role(moshi: Path, speech: np.ndarray) -> None:
    model = PersonaPlex.from_pretrained(moshi, dtype=mx.float32, compiled=False)
    assert model.default_voice is None and model.default_prompt is None
    reply = model.respond(speech[:9600], seed=3, max_steps=2)
    assert reply.seconds > 0.5
    again = model.respond(speech[:9600], voice=None, prompt=None, seed=3, max_steps=2)
    assert same(mx.array(reply.audio), mx.array(again.audio)), "its default is no prompt at all"
    for options in ({"voice": "NATF2"}, {"prompt": "teacher"}, {"prompt": [5]}):
        with pytest.raises(PersonaError, match="Moshi: its voice and role cannot be set; leave them out"):
            model.respond(speech[:9600], **options)


def test_the_engine_opens_moshi_without_a_prompt(moshi: Path, speech: np.ndarray) -> None:
    with Engine(lambda: PersonaPlex.from_pretrained(moshi, dtype=mx.float32, compiled=False)) as engine:
        with engine.open(Settings(seed=3)) as call:
            call.feed(speech[:5760])
            call.finish()
            assert sum(type(event).__name__ == "Audio" for event in call.events()) == 3
        with pytest.raises(PersonaError, match="Moshi"), engine.open(Settings(voice="", prompt="teacher")):
            pass
        with engine.open(Settings(seed=3)) as call:
            call.feed(speech[:5760])
            call.update(prompt="teacher")
            call.feed(speech[:5760])
            call.finish()
            events = list(call.events())
            assert any(isinstance(event, Error) and "Moshi" in str(event.error) for event in events)
            assert sum(type(event).__name__ == "Audio" for event in events) == 6, "it was told, and talks on"


@pytest.mark.parametrize("command", ["respond", "talk"])
@pytest.mark.parametrize("options", [[], ["--voice", "NATF2", "--system-prompt", "teacher"]])
def test_the_program_says_that_moshi_takes_none_and_talks(
    moshi: Path,
    tmp_path: Path,
    speech: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: list[str],
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    write_audio(tmp_path / "question.wav", speech[:9600])
    files = ["-i", str(tmp_path / "question.wav"), "-o", str(tmp_path / "answer.wav")]
    assert main([command, "--model", str(moshi), *files, "--max-seconds", "0.2", *options]) == 0
    assert capsys.readouterr().err.count("is Moshi: its voice and role cannot be set, so it talks as itself") == 1
    assert (tmp_path / "answer.wav").stat().st_size > 10_000


@pytest.fixture
def hub(moshi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a Moshi and a Mimi on it, tiny ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(repository, "getproxies", dict)
    folders = {"kyutai/moshiko-pytorch-bf16": moshi, "kyutai/mimi": FIXTURES / "transformers-mimi"}
    repos = {name: Repo({p.name: p.read_bytes() for p in path.iterdir()}) for name, path in folders.items()}
    with running(repos) as served:
        ask(monkeypatch, served.url)
        yield served


def test_by_their_names_on_the_hub(
    hub: Hub, tmp_path: Path, speech: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user types, from the name to the answer."""
    write_audio(tmp_path / "question.wav", speech[:9600])
    question, answer = str(tmp_path / "question.wav"), str(tmp_path / "answer.wav")
    moshi = ["--model", "kyutai/moshiko-pytorch-bf16"]
    assert main(["respond", *moshi, "-i", question, "-o", answer, "--max-steps", "2", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["voice"] is None
    assert "licence CC BY 4.0" in told.err and "cannot be set, so it talks as itself" in told.err
    assert main(["respond", *moshi, "--list-voices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    codes = str(tmp_path / "codes.safetensors")
    assert main(["codec", "encode", question, codes, "--model", "kyutai/mimi"]) == 0
    assert main(["respond", "--model", "kyutai/mimi", "-i", question, "-o", answer]) == 4
    assert "Mimi alone, which `personaplex codec` takes" in capsys.readouterr().err
    names = {name for name, _ in hub.downloads()}
    assert "expected.safetensors" not in names and "model.safetensors" in names

"""Loading: strict about every tensor, lazy about all that is not needed, packed or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from personaplex.bench.load import bytes_read
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import expected_tensors, load_lm, quantised
from personaplex.checkpoint.packing import pack, packed_names, packing_of, unpacked
from personaplex.checkpoint.rules import lm_rules, mimi_rules
from personaplex.checkpoint.tensors import TensorFile
from personaplex.config import LMConfig, MimiConfig, Packing, PackingException, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.nn.state import parameters
from personaplex.nn.tables import QuantizedPerStepLinear, QuantizedTokenTables
from tests.conftest import FIXTURES, PARITY, edit_config, same

LM_FILE = "model.safetensors"


def stored(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    mx.eval(loaded)
    return loaded


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((FIXTURES / name).read_text()).items()}


@pytest.mark.parametrize("steps", [8, 16])
def test_the_475_tensors_of_the_7b(steps: int) -> None:
    found = expected_tensors(lm_rules(LMConfig(), steps))
    assert found == shapes("keys_lm_7b.json")
    assert len(found) == 475


def test_the_318_tensors_of_mimi() -> None:
    found = expected_tensors(mimi_rules(MimiConfig()))
    assert found == shapes("keys_mimi.json")
    assert len(found) == 318


def test_the_355_tensors_of_moshi() -> None:
    assert len(expected_tensors(lm_rules(LMConfig(dep_q=8), 8))) == 355


def test_the_7b_has_the_references_parameter_count() -> None:
    """Built, counted and dropped without ever being allocated: MLX makes arrays when they are evaluated."""
    before = mx.get_active_memory()
    model = LanguageModel(LMConfig(), depformer_steps=16)
    assert sum(array.size for array in parameters(model).values()) == 8_371_408_896
    assert mx.get_active_memory() - before < 1 << 20


def test_only_what_is_needed_is_loaded(folder: ModelFolder) -> None:
    eight, sixteen = parameters(folder.load_lm(8)), parameters(folder.load_lm(16))
    assert eight["depformer.heads.weight"].shape[0] == 8
    assert sum(a.nbytes for a in eight.values()) < sum(a.nbytes for a in sixteen.values())
    assert folder.load_mimi().quantizer.acoustic.centroids.shape[0] == 7


def test_what_is_not_needed_stays_on_disk(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """To talk, the user's depformer steps are not read: none of their tensors is asked for, none of their bytes."""
    taken: set[str] = set()
    take = TensorFile.take

    def noted(file: TensorFile, name: str) -> mx.array:
        taken.add(name)
        return take(file, name)

    monkeypatch.setattr(TensorFile, "take", noted)
    before = bytes_read()
    folder.load_lm(8)
    after = bytes_read()
    rules = list(lm_rules(folder.config.lm, 8))
    wanted = {name for rule in rules if rule.target for name in rule.sources}
    left = {name for rule in rules if not rule.target for name in rule.sources}
    assert taken == wanted and len(left) == 8 * (3 + 2 * folder.config.lm.depformer_num_layers)
    if before is not None and after is not None:
        entries = folder.open_lm().entries
        whole, needed = (sum(entries[name].n_bytes for name in names) for names in (entries, wanted))
        assert needed <= after - before < needed + 200_000 < whole


def moshi_folder(tiny: Path) -> Path:
    """The tiny model cut down to Kyutai's layout: 8 depformer steps, no prompts."""
    tensors = stored(tiny / LM_FILE)
    kept = {}
    for name, array in tensors.items():
        parts = name.split(".")
        if parts[0] in ("linears", "depformer_in") and int(parts[1]) >= 8:
            continue
        if parts[0] == "depformer_emb" and int(parts[1]) >= 7:
            continue
        if "gating" in parts and parts[0] == "depformer" and int(parts[4]) >= 8:
            continue
        halved = parts[0] == "depformer" and "self_attn" in parts
        kept[name] = array[: array.shape[0] // 2] if halved else array
    mx.save_safetensors(str(tiny / LM_FILE), kept)
    config = json.loads((tiny / "config.json").read_text())
    edit_config(tiny, lm=config["lm"] | {"dep_q": 8})
    return tiny


def test_an_eight_codebook_moshi_is_the_same_code(tiny_folder: Path, lm: LanguageModel) -> None:
    moshi = ModelFolder(moshi_folder(tiny_folder)).load_lm(dtype=mx.float32)
    frames = mx.random.randint(0, 300, (1, 17, 6), key=mx.random.key(1))
    for a, b in zip(moshi.teacher_forced(frames), lm.teacher_forced(frames), strict=True):
        assert same(a, b)
    with pytest.raises(ConfigError, match="16 depformer steps asked for; this model has 8"):
        ModelFolder(tiny_folder).load_lm(16)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.pop("out_norm.alpha"), "'out_norm.alpha' .* is missing"),
        (lambda t: t.update({"extra.weight": mx.zeros(1)}), "unknown tensor 'extra.weight'"),
        (lambda t: t.update({"linears.3.weight": t["linears.3.weight"][:5]}), "'linears.3.weight' has shape"),
        (lambda t: t.update({"emb.0.weights": t.pop("emb.0.weight")}), "'emb.0.weight' .* is missing"),
        # Not needed for eight steps, and still part of the file.
        (lambda t: t.pop("linears.12.weight"), "'linears.12.weight' .* is missing"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(tiny_folder: Path, damage: object, says: str) -> None:
    tensors = stored(tiny_folder / LM_FILE)
    damage(tensors)  # type: ignore[operator]
    mx.save_safetensors(str(tiny_folder / LM_FILE), tensors)
    with pytest.raises(CheckpointError, match=says):
        ModelFolder(tiny_folder).load_lm()


@pytest.mark.parametrize("keep", [0, 4, 100, 3_000_000])
def test_a_file_that_was_cut_is_refused_before_it_is_used(tiny_folder: Path, keep: int) -> None:
    path = tiny_folder / LM_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cut short"):
        ModelFolder(tiny_folder).load_lm()


@pytest.mark.parametrize(
    "header",
    [b"no json", b"[1]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
     b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
     b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        TensorFile(path)


def test_missing_and_doubled_files_are_named(tiny_folder: Path) -> None:
    (tiny_folder / LM_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        ModelFolder(tiny_folder).load_lm()
    (tiny_folder / "tokenizer-other.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds both"):
        ModelFolder(tiny_folder).load_mimi()
    with pytest.raises(CheckpointError, match="does not exist"):
        ModelFolder(tiny_folder / "nowhere")


def test_weights_stay_in_the_type_they_are_given(folder: ModelFolder) -> None:
    """Nothing in a step may promote bfloat16 to float32 behind our back (a port's whole model ran in float32)."""
    lm = folder.load_lm(dtype=mx.bfloat16)
    columns = mx.array([[[3, *[-1] * 16], [-1, *range(16)]]])
    embedded = lm.embed(columns)
    z, state = lm.advance(embedded, lm.init_state(1))
    assert {embedded.dtype, z.dtype, state.rings[0].k.dtype, lm.text_head(z).dtype} == {mx.bfloat16}
    codes, logits = lm.depformer.generate(z[:, -1], mx.array([3]), lambda _, row: row.argmax(-1))
    assert (logits.dtype, codes.shape) == (mx.bfloat16, (1, 8))


def test_the_zero_token_embeds_as_nothing(lm: LanguageModel) -> None:
    nothing = lm.embed(mx.full((1, 1, 17), -1))
    assert not nothing.any().item()


WIDE = LMConfig(
    dim=64, text_card=90, card=40, num_heads=2, num_layers=2, context=20, depformer_dim=64,
    depformer_dim_feedforward=96, depformer_num_heads=2, depformer_num_layers=1, hidden_scale=1.5,
)  # fmt: skip


def packed_file(path: Path, quantization: QuantizationConfig) -> dict[str, mx.array]:
    """Write a random model of WIDE with some parts packed; returns the tensors as they are once unpacked."""
    plain, written = {}, {}
    for i, rule in enumerate(lm_rules(WIDE, 16)):
        for j, (name, shape) in enumerate(rule.sources.items()):
            value = 0.2 * mx.random.normal(shape, key=mx.random.key(1000 * i + j))
            packing = packing_of(rule, quantization)
            if packing is None:
                plain[name] = written[name] = value
                continue
            packed = mx.quantize(value, packing.group_size, packing.bits)
            written |= dict(zip(packed_names(name), packed, strict=True))
            plain[name] = unpacked(packed, packing)
    mx.save_safetensors(str(path), written)
    return plain


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("parts", [("temporal", "depformer"), ("temporal", "depformer", "heads", "embeddings")])
def test_packed_weights_mean_what_they_say(tmp_path: Path, bits: int, parts: tuple[str, ...]) -> None:
    """Unpacked at load (the CPU's way) and packed while running (the GPU's way) give the unpacked model's logits."""
    quantization = QuantizationConfig.uniform(bits, 32, parts)
    plain = packed_file(tmp_path / "packed.safetensors", quantization)
    mx.save_safetensors(str(tmp_path / "plain.safetensors"), plain)
    reference = load_lm(tmp_path / "plain.safetensors", WIDE, dtype=mx.float32)
    frames = mx.random.randint(0, 40, (2, 17, 9), key=mx.random.key(7))
    expected = reference.teacher_forced(frames)
    for unpack in (True, False):
        model = load_lm(
            tmp_path / "packed.safetensors", WIDE, quantization=quantization, dtype=mx.float32, unpack=unpack
        )
        assert isinstance(model.depformer.heads, QuantizedPerStepLinear) == (not unpack and "heads" in parts)
        assert isinstance(model.text_emb, QuantizedTokenTables) == (not unpack and "embeddings" in parts)
        for found, wanted in zip(model.teacher_forced(frames), expected, strict=True):
            assert float(mx.abs(found.astype(mx.float32) - wanted.astype(mx.float32)).max()) < 1e-4


def noise(found: mx.array, wanted: mx.array) -> float:
    """Root mean square of the difference, relative to that of what was wanted."""
    return float(mx.sqrt(mx.square(found - wanted).mean() / mx.square(wanted).mean()))


@pytest.mark.parametrize(
    ("bits", "group_size", "most"), [(4, 32, 0.079), (4, 64, 0.091), (8, 32, 0.0048), (8, 64, 0.0055)]
)
def test_bfloat16_scales_cost_nothing(bits: int, group_size: int, most: float) -> None:
    """They are rounded before the codes are chosen; rounded afterwards, as by `mx.quantize`, they cost a quarter."""
    weights = (0.02 * mx.random.normal((300, 4096), key=mx.random.key(0))).astype(mx.bfloat16)
    packing = Packing(bits, group_size)
    packed = pack(weights, packing)
    assert [array.dtype for array in packed] == [mx.uint32, mx.bfloat16, mx.bfloat16]
    wide = weights.astype(mx.float32)
    ours = noise(unpacked(packed, packing), wide)
    exact = noise(unpacked(mx.quantize(wide, group_size, bits), packing), wide)
    theirs = noise(unpacked(mx.quantize(weights, group_size, bits), packing), wide)
    sys.stdout.write(
        f"{bits} bits, {group_size}: ours {ours:.5f}, float32 scales {exact:.5f}, mx.quantize {theirs:.5f}\n"
    )
    assert ours < most and ours < 1.01 * exact and (bits == 4 or ours < 0.8 * theirs)


def test_what_has_no_range_is_kept_exactly() -> None:
    rows = mx.array([[0.0] * 32, [-0.75] * 32, [0.5] * 31 + [0.501953125]], mx.bfloat16).astype(mx.float32)
    for bits in (4, 8):
        found = unpacked(pack(rows, Packing(bits, 32)), Packing(bits, 32))
        assert float(mx.abs(found - rows).max()) < 1e-4 and same(found[:2], rows[:2])
    with pytest.raises(ConfigError, match="groups of 64 do not divide rows of 32"):
        pack(rows, Packing(4, 64))
    with pytest.raises(ConfigError, match="6 bits can be read but not written"):
        pack(rows, Packing(6, 32))


EVERY_WIDTH = QuantizationConfig(
    temporal=Packing(4, 32), depformer=Packing(8, 32), heads=Packing(8, 64), embeddings=Packing(16, 64),
    exceptions=(
        PackingException("transformer.layers.0.*", 8, 64), PackingException("*.1.self_attn.out_proj.weight", 16),
    ),
)  # fmt: skip


@pytest.mark.parametrize("unpack", [True, False])
def test_a_model_quantised_in_memory_is_the_one_that_is_loaded(tmp_path: Path, unpack: bool) -> None:
    plain: dict[str, mx.array] = {}
    written: dict[str, mx.array] = {}
    for i, rule in enumerate(lm_rules(WIDE, 16)):
        packing = packing_of(rule, EVERY_WIDTH)
        for j, (name, shape) in enumerate(rule.sources.items()):
            plain[name] = 0.2 * mx.random.normal(shape, key=mx.random.key(1000 * i + j))
            packed = pack(plain[name], packing) if packing else ()
            written |= dict(zip(packed_names(name), packed, strict=True)) if packed else {name: plain[name]}
    mx.save_safetensors(str(tmp_path / "plain.safetensors"), plain)
    mx.save_safetensors(str(tmp_path / "packed.safetensors"), written)
    model = load_lm(tmp_path / "plain.safetensors", WIDE, dtype=mx.float32)
    before = parameters(model)
    found = parameters(quantised(model, EVERY_WIDTH, unpack=unpack))
    wanted = load_lm(tmp_path / "packed.safetensors", WIDE, quantization=EVERY_WIDTH, dtype=mx.float32, unpack=unpack)
    assert found.keys() == parameters(wanted).keys()
    assert all(same(array, found[name]) for name, array in parameters(wanted).items())
    assert all(array is before[name] for name, array in parameters(model).items()), "the model itself was changed"
    name = "temporal.layers.{}.attention.in_proj.scales"
    assert unpack or [found[name.format(i)].shape[1] for i in range(2)] == [1, 2]


def test_steps_that_are_stored_differently_are_refused() -> None:
    uneven = QuantizationConfig(heads=Packing(8, 32), exceptions=(PackingException("linears.3.weight", 4, 32),))
    with pytest.raises(ConfigError, match=r"'linears.0.weight' is stored otherwise .* one pattern"):
        expected_tensors(lm_rules(WIDE, 8), uneven)


def test_an_exception_for_nothing_is_refused() -> None:
    """A pattern that matches only norms, which are never packed, matches nothing."""
    for pattern in ("transformer.layers.2.*", "*.norm1.alpha"):
        with pytest.raises(ConfigError, match="no matrix has a name like"):
            expected_tensors(lm_rules(WIDE, 8), QuantizationConfig(exceptions=(PackingException(pattern, 8, 32),)))


def test_a_packed_model_is_not_quantised_again(tmp_path: Path) -> None:
    how = QuantizationConfig.uniform(8, 32)
    packed_file(tmp_path / "packed.safetensors", how)
    model = load_lm(tmp_path / "packed.safetensors", WIDE, quantization=how, dtype=mx.float32, unpack=False)
    with pytest.raises(UsageError, match="packed already"):
        quantised(model, QuantizationConfig.uniform(4, 32))


def test_packed_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    packed_file(tmp_path / "packed.safetensors", QuantizationConfig.uniform(4, 32))
    with pytest.raises(CheckpointError, match="has shape"):
        load_lm(tmp_path / "packed.safetensors", WIDE, quantization=QuantizationConfig.uniform(8, 32))
    with pytest.raises(ConfigError, match="do not divide"):
        load_lm(tmp_path / "packed.safetensors", WIDE, quantization=QuantizationConfig.uniform(4, 128))


def test_mimi_can_be_taken_from_a_folder_without_a_language_model(tiny_folder: Path) -> None:
    (tiny_folder / LM_FILE).unlink()
    assert same(
        ModelFolder(tiny_folder).load_mimi().encode(mx.zeros((1, 1920))),
        ModelFolder(PARITY).load_mimi().encode(mx.zeros((1, 1920))),
    )

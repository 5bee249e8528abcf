"""What a checkpoint is made of, read strictly from the `config.json` beside its weights.

Field names are those of the reference's own dictionaries, so that a configuration can be compared with it line by
line. An unknown, missing or unsupported field is an error that names it: a network that is nearly right is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from personaplex.errors import ConfigError
from personaplex.units import FRAME_RATE, N_CODEBOOKS, SAMPLE_RATE, SILENCE_CODES, SINE_CODES

T = typing.TypeVar("T")


def from_json(cls: type[T], data: Any, where: str) -> T:
    """Build the dataclass `cls` from a JSON object, refusing unknown and missing keys and wrong types.

    `where` names the object in messages. A class may list `FIXED` values (fields that exist in the format but of
    which we implement one value), turn older data into `today`'s, and raise ConfigError from `__post_init__`.
    """
    data = getattr(cls, "today", lambda older, _: older)(data, where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, found {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(fields))}")
    required = {n for n, f in fields.items() if _has_no_default(f)}
    if missing := sorted(required - set(data)):
        raise ConfigError(f"{where}: the field {missing[0]!r} is missing")
    hints = typing.get_type_hints(cls)
    values = {name: _read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    fixed: dict[str, Any] = getattr(cls, "FIXED", {})
    for name, only in fixed.items():
        if name in values and values[name] != only:
            raise ConfigError(f"{where}.{name} is {values[name]!r}; only {only!r} is supported")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _has_no_default(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _read(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _read(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_read(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    if hint in (int, float) and not 0 <= value < 1 << 31:
        raise ConfigError(f"{where}: {value} is out of range")
    return value


def _gated_width(dim: int, feedforward: int) -> int:
    """Hidden width of a gated feed-forward block (reference gating.py): two thirds, or 21/8 when it is 4 x dim."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


MOST_LAYERS = 1024
"""Of any kind: a file that asks for more is damaged, and would keep us building for hours."""


def _check_count(count: int, what: str) -> None:
    if not 1 <= count <= MOST_LAYERS:
        raise ConfigError(f"{what} is {count}; it must be from 1 to {MOST_LAYERS}")


def _check_heads(dim: int, heads: int, what: str) -> None:
    if heads < 1 or dim % heads or (dim // heads) % 2:
        raise ConfigError(f"{what}: {dim} channels cannot be split into {heads} heads of even width")


@dataclass(frozen=True)
class LMConfig:
    """The language model: a temporal transformer over frames and a depformer over codebooks.

    Defaults are PersonaPlex 7B (`spec` of the reference's loaders.py). Lengths are in frames.
    """

    dim: int = 4096
    text_card: int = 32_000
    existing_text_padding_id: int = 3
    n_q: int = 16
    dep_q: int = 16
    card: int = 2048
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    max_period: float = 10_000.0
    depformer_dim: int = 1024
    depformer_dim_feedforward: int = 4224
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    delays: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    causal: bool = True
    layer_scale: float | None = None
    gating: str = "silu"
    norm: str = "rms_norm_f32"
    positional_embedding: str = "rope"
    depformer_causal: bool = True
    depformer_layer_scale: float | None = None
    depformer_multi_linear: bool = True
    depformer_gating: str = "silu"
    depformer_pos_emb: str = "none"
    depformer_weights_per_step: bool = True
    # In the reference's dictionary, but without effect there (its loader overwrites the first): read and ignored.
    depformer_context: int | None = None
    depformer_max_period: float | None = None

    FIXED: ClassVar[dict[str, Any]] = {
        "n_q": 2 * N_CODEBOOKS,
        "causal": True,
        "layer_scale": None,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_causal": True,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
    }

    def __post_init__(self) -> None:
        if self.dep_q not in (N_CODEBOOKS, 2 * N_CODEBOOKS):
            raise ConfigError(f"dep_q is {self.dep_q}; 8 (Moshi) or 16 (PersonaPlex) is supported")
        speaker = (0,) + (1,) * (N_CODEBOOKS - 1)
        if self.delays != (0, *speaker, *speaker):
            raise ConfigError(f"delays are {list(self.delays)}; only 0 | 0,1x7 | 0,1x7 is supported")
        _check_heads(self.dim, self.num_heads, "temporal transformer")
        _check_heads(self.depformer_dim, self.depformer_num_heads, "depformer")
        for name in (
            "context",
            "card",
            "text_card",
            "max_period",
            "hidden_scale",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        _check_count(self.num_layers, "num_layers")
        _check_count(self.depformer_num_layers, "depformer_num_layers")
        if not 0 <= self.existing_text_padding_id < self.text_card:
            raise ConfigError("existing_text_padding_id is outside the text vocabulary")

    @property
    def hidden(self) -> int:
        """Width inside the temporal transformer's gated feed-forward blocks."""
        return _gated_width(self.dim, int(self.hidden_scale * self.dim))

    @property
    def depformer_hidden(self) -> int:
        """Width inside the depformer's gated feed-forward blocks."""
        return _gated_width(self.depformer_dim, self.depformer_dim_feedforward)


@dataclass(frozen=True)
class SeanetConfig:
    """The convolutional ends of Mimi. `ratios` are in decoder order; the encoder uses them reversed."""

    dimension: int = 512
    n_filters: int = 64
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    channels: int = 1
    causal: bool = True
    n_residual_layers: int = 1
    activation: str = "ELU"
    dilation_base: int = 2
    disable_norm_outer_blocks: int = 0
    norm: str = "none"
    pad_mode: str = "constant"
    true_skip: bool = True

    FIXED: ClassVar[dict[str, Any]] = {
        "channels": 1,
        "causal": True,
        "n_residual_layers": 1,
        "activation": "ELU",
        "norm": "none",
        "pad_mode": "constant",
        "true_skip": True,
    }

    @property
    def hop(self) -> int:
        """Samples per latent: 960 in Mimi."""
        return prod(self.ratios)


@dataclass(frozen=True)
class CodecTransformerConfig:
    """Each of Mimi's two transformers. `context` is in latents (25 Hz), not frames."""

    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 8
    layer_scale: float = 0.01
    context: int = 250
    max_period: float = 10_000.0
    dim_feedforward: int = 2048
    input_dimension: int = 512
    output_dimensions: tuple[int, ...] = (512,)
    causal: bool = True
    conv_layout: bool = True
    gating: str = "none"
    norm: str = "layer_norm"
    positional_embedding: str = "rope"

    FIXED: ClassVar[dict[str, Any]] = {
        "causal": True,
        "conv_layout": True,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
    }

    def __post_init__(self) -> None:
        _check_heads(self.d_model, self.num_heads, "codec transformer")
        _check_count(self.num_layers, "num_layers")
        if self.input_dimension != self.d_model or self.output_dimensions != (self.d_model,):
            raise ConfigError("input_dimension and output_dimensions must equal d_model")


@dataclass(frozen=True)
class QuantizerConfig:
    """Mimi's split residual quantiser: `n_q` codebooks of `bins` entries of `dimension` values in the file."""

    dimension: int = 256
    n_q: int = 32
    bins: int = 2048
    input_dimension: int = 512
    output_dimension: int = 512

    def __post_init__(self) -> None:
        _check_count(self.n_q, "n_q")


@dataclass(frozen=True)
class MimiConfig:
    """The codec; defaults are Mimi as PersonaPlex ships it. `num_codebooks` of the quantiser's are used."""

    sample_rate: int = SAMPLE_RATE
    frame_rate: float = FRAME_RATE
    channels: int = 1
    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    transformer: CodecTransformerConfig = field(default_factory=CodecTransformerConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    num_codebooks: int = N_CODEBOOKS

    FIXED: ClassVar[dict[str, Any]] = {"sample_rate": SAMPLE_RATE, "frame_rate": FRAME_RATE, "channels": 1}

    def __post_init__(self) -> None:
        if not 2 <= self.num_codebooks <= self.quantizer.n_q:
            raise ConfigError(
                f"num_codebooks is {self.num_codebooks}; the quantiser has {self.quantizer.n_q} (at least 2 are needed)"
            )
        if (
            min(*self.seanet.ratios, self.seanet.compress, self.transformer.context) < 1
            or self.transformer.max_period < 1
        ):
            raise ConfigError("ratios, compress, context and max_period must be at least 1")
        if round(SAMPLE_RATE / FRAME_RATE) % self.seanet.hop:
            raise ConfigError(f"ratios multiply to {self.seanet.hop} samples, which do not divide a frame of 1920")
        width = self.seanet.dimension
        if self.transformer.d_model != width:
            raise ConfigError(f"transformer.d_model is {self.transformer.d_model} but seanet.dimension is {width}")
        if (self.quantizer.input_dimension, self.quantizer.output_dimension) != (width, width):
            raise ConfigError(f"the quantiser's input and output dimensions must equal seanet.dimension, {width}")

    @property
    def latents_per_frame(self) -> int:
        """Latents (25 Hz) that are resampled into one frame (12.5 Hz): 2 in Mimi."""
        return round(SAMPLE_RATE / FRAME_RATE) // self.seanet.hop


@dataclass(frozen=True)
class SamplingDefaults:
    """What a checkpoint wants to be sampled with, unless the caller says otherwise (reference §5.5)."""

    text_temp: float = 0.7
    text_top_k: int = 25
    audio_temp: float = 0.8
    audio_top_k: int = 250


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; a file that is not there holds an empty one. Raises ConfigError naming it."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object, found {type(data).__name__}")
    return data


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number here")


PARTS = ("temporal", "depformer", "heads", "embeddings")
"""Parts of the language model that can be stored quantised."""

PLAIN_BITS = 16
"""Not quantised."""

GROUP_SIZES = (32, 64, 128)
"""That MLX packs."""


@dataclass(frozen=True)
class Packing:
    """How matrices are stored: MLX's affine layout, `bits` per value, one scale and bias per group; 16 is plain."""

    bits: int = PLAIN_BITS
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 5, 6, 8, PLAIN_BITS):
            raise ConfigError(f"bits is {self.bits}; MLX packs 2, 3, 4, 5, 6 or 8, and 16 is not quantised")
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"group_size is {self.group_size}; MLX packs groups of 32, 64 or 128")


@dataclass(frozen=True)
class PackingException:
    """Tensors whose names in the file match the pattern `tensors` (`*` and `?`) are stored with other bits."""

    tensors: str
    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        Packing(self.bits, self.group_size)

    @property
    def packing(self) -> Packing:
        """The same without the pattern."""
        return Packing(self.bits, self.group_size)


@dataclass(frozen=True)
class _OneWidth:
    bits: int
    group_size: int
    parts: tuple[str, ...] = ("temporal", "depformer")


@dataclass(frozen=True)
class QuantizationConfig:
    """How the matrices of each part are stored; of several exceptions that match a tensor the last one counts."""

    temporal: Packing = field(default_factory=Packing)
    depformer: Packing = field(default_factory=Packing)
    heads: Packing = field(default_factory=Packing)
    embeddings: Packing = field(default_factory=Packing)
    exceptions: tuple[PackingException, ...] = ()

    @staticmethod
    def today(data: Any, where: str) -> Any:
        """The older form, one packing for all `parts`, as today's; anything else as it is."""
        if not isinstance(data, dict) or "bits" not in data:
            return data
        one = from_json(_OneWidth, data, where)
        return {part: {"bits": one.bits, "group_size": one.group_size} for part in one.parts}

    @classmethod
    def uniform(
        cls, bits: int, group_size: int, parts: tuple[str, ...] = ("temporal", "depformer")
    ) -> QuantizationConfig:
        """The same packing for all `parts`; the others are plain. Raises ConfigError for an unknown part."""
        if unknown := sorted(set(parts) - set(PARTS)):
            raise ConfigError(f"unknown part {unknown[0]!r}; known are {', '.join(PARTS)}")
        values: dict[str, Any] = dict.fromkeys(parts, Packing(bits, group_size))
        return cls(**values)

    def of(self, part: str, tensor: str) -> Packing | None:
        """How `tensor` of `part` is stored; None for plainly."""
        found: Packing = getattr(self, part)
        for exception in self.exceptions:
            if fnmatchcase(tensor, exception.tensors):
                found = exception.packing
        return None if found.bits == PLAIN_BITS else found


@dataclass(frozen=True)
class FileHash:
    """A file of a model folder by its path in there, its size and its SHA-256."""

    name: str
    n_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ConfigError(f"the file {self.name!r} is not one of its folder")


@dataclass(frozen=True)
class Provenance:
    """Where a converted model came from.

    `source` is what was converted and `base_model` the repository that it goes back to (or nano), whose licence it has,
    empty where that is not known; `files` are all but this file and the card.
    """

    source: str
    source_fingerprint: str
    base_model: str
    converter: str
    files: tuple[FileHash, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Everything a model folder may say about itself; the defaults are PersonaPlex 7B.

    `prompts`: it can be told a voice and a role before it talks. Moshi cannot.
    """

    lm: LMConfig = field(default_factory=LMConfig)
    mimi: MimiConfig = field(default_factory=MimiConfig)
    silence_codes: tuple[int, ...] = SILENCE_CODES
    sine_codes: tuple[int, ...] = SINE_CODES
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    quantization: QuantizationConfig | None = None
    provenance: Provenance | None = None
    prompts: bool = True
    model_type: str = "personaplex"
    version: str = ""

    FIXED: ClassVar[dict[str, Any]] = {"model_type": "personaplex"}

    def __post_init__(self) -> None:
        for name in ("silence_codes", "sine_codes"):
            if len(getattr(self, name)) != N_CODEBOOKS:
                raise ConfigError(f"{name} must hold {N_CODEBOOKS} codes")
        if self.mimi.num_codebooks < N_CODEBOOKS:
            raise ConfigError(
                f"mimi.num_codebooks is {self.mimi.num_codebooks}; the language model needs {N_CODEBOOKS}"
            )
        if self.mimi.quantizer.bins != self.lm.card:
            raise ConfigError(f"lm.card is {self.lm.card} but the codec has {self.mimi.quantizer.bins} bins")

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read `config.json`; a file that is not there means the 7B.

        Raises ConfigError naming the file and the field.
        """
        return from_json(cls, read_json(path), str(path))

    def to_json(self) -> str:
        """The text of a `config.json` that `read` turns into an equal configuration; every field is named."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

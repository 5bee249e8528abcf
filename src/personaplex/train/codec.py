"""Training Mimi: hear a crop, quantise, say it again, compare.

A step is one function from a state (weights, moments, codebooks) and a batch to the next state, so that it can be
compiled, saved and resumed to the bit. The model's own code runs forward and backward; only the quantiser differs,
because its centroids are learned (see `quantizer`). The first codebook is also asked, by a linear map that is thrown
away afterwards, which phones it heard: that makes its codes carry meaning without a teacher model.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from personaplex.checkpoint.load import load_mimi
from personaplex.checkpoint.save import save_mimi
from personaplex.config import MimiConfig, from_json
from personaplex.errors import ConfigError, TrainingError
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters
from personaplex.train.adamw import Arrays, Moments, adamw, cosine, init_moments
from personaplex.train.corpus import LABELS, Batch, Corpus, CorpusConfig
from personaplex.train.discriminator import Critic, critic_loss, pleasing_loss
from personaplex.train.init import initialise
from personaplex.train.losses import cross_entropy, envelope_distance, mel_distance, pitch_distance
from personaplex.train.quantizer import Books, perplexity, quantise, residual_k_means
from personaplex.train.run import Run, pack, unpack
from personaplex.train.team import Team
from personaplex.units import FRAME_SAMPLES

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class LossWeights:
    """What each distance counts. The sum is divided by `divisor`, which brings gradient norms to about 1."""

    mel: float = 8.0
    envelope: float = 4.0
    pitch: float = 30.0
    wave: float = 2.0
    commitment: float = 2.0
    phones: float = 1.5
    verdict: float = 1.0
    features: float = 4.0
    divisor: float = 50.0


@dataclass(frozen=True)
class CodecTraining:
    """How a codec is trained. Steps count from 0; `critic_from` beyond `steps` means no critic."""

    mimi: MimiConfig = field(default_factory=MimiConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    seed: int = 1
    steps: int = 12_000
    batch: int = 48
    crop_frames: int = 24
    shares: tuple[float, ...] = (0.48, 0.49, 0.03)
    heard_badly: float = 0.8
    learning_rate: float = 8e-4
    warmup: int = 100
    betas: tuple[float, ...] = (0.8, 0.99)
    decay: float = 0.01
    largest_norm: float = 5.0
    quantise_from: int = 1_000
    k_means_batches: int = 16
    restart_every: int = 50
    fewer_books: float = 0.25
    critic_from: int = 6_000
    critic_channels: int = 16
    critic_frames: int = 6
    precision: str = "float32"
    compile: bool = True
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ConfigError(f"precision is {self.precision!r}; known are {', '.join(DTYPES)}")
        if len(self.shares) != 3 or sum(self.shares) <= 0:
            raise ConfigError("shares must be three numbers: agent, user, other")
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise ConfigError("betas must be two numbers below 1")
        for name in ("steps", "batch", "log_every", "save_every", "restart_every", "critic_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.crop_frames < 8 or not 1 <= self.critic_frames <= self.crop_frames:
            raise ConfigError("crop_frames must be at least 8, and critic_frames at most that")
        if self.quantise_from and self.k_means_batches < 1:
            raise ConfigError("k_means_batches must be at least 1")
        if self.mimi.num_codebooks != self.mimi.quantizer.n_q:
            raise ConfigError("mimi.num_codebooks must be mimi.quantizer.n_q: a codec is trained whole")


def read_codec_training(path: Path) -> CodecTraining:
    """Read a TOML file strictly. Raises ConfigError naming the file and the field."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    return from_json(CodecTraining, data, str(path))


class State(NamedTuple):
    """Everything that a step changes. `weights` are the model's by dotted name and `phones.*`, the phone head's."""

    weights: Arrays
    moments: Moments
    books: dict[str, Books]
    critic: Arrays
    critic_moments: Moments


class Control(NamedTuple):
    """What changes from step to step beside the batch; arrays, so that nothing is compiled anew."""

    learning_rate: mx.array
    quantised: mx.array
    restart: mx.array
    key: mx.array


Crops = tuple[mx.array, mx.array, mx.array]
"""A batch on the device: what is heard, what should be said, and the phones."""

BRANCHES = ("semantic", "acoustic")


class CodecTrainer:
    """The networks and the functions of one step. The state is handed in and out; see `State`."""

    def __init__(self, config: CodecTraining, n_phones: int, team: Team | None = None) -> None:
        self.config, self.n_phones, self.team = config, n_phones, team or Team()
        self.model = Mimi(config.mimi)
        for branch in BRANCHES:
            self.model.quantizer[branch].freeze(keys=["centroids"])
        self.critic = Critic(config.critic_channels)
        self._steps: dict[bool, Any] = {}

    def init_state(self, start_from: Path | None = None) -> State:
        """The state before the first step: random weights by the configuration's seed, or a trained codec's."""
        config, quantizer = self.config, self.config.mimi.quantizer
        initialise(self.model, config.seed)
        if start_from:
            self.model.update(load_mimi(start_from, config.mimi).parameters())  # type: ignore[no-untyped-call]
        weights = dict(tree_flatten(self.model.trainable_parameters()))  # type: ignore[no-untyped-call]
        key = mx.random.key(config.seed + 1)
        shape = (LABELS * self.n_phones, quantizer.dimension)
        weights["phones.weight"] = mx.random.normal(shape, key=key) / math.sqrt(quantizer.dimension)
        weights["phones.bias"] = mx.zeros((LABELS * self.n_phones,))
        critic = parameters(initialise(self.critic, config.seed + 2))
        # As if every centroid had been used evenly for long.
        used = config.batch * config.crop_frames / quantizer.bins
        centroids = {name: mx.array(self.model.quantizer[name].centroids) for name in BRANCHES}
        books = {name: Books(table * used, mx.full(table.shape[:2], used)) for name, table in centroids.items()}
        return State(weights, init_moments(weights), books, critic, init_moments(critic))

    def step(self, state: State, batch: Batch, step: int) -> tuple[State, Arrays]:
        """Learn from one batch; step `config.quantise_from` must have been preceded by `seed_books`.

        Returns the next state and numbers to log, nothing of it evaluated yet.
        """
        config = self.config
        control = Control(
            mx.array(cosine(step, config.steps, config.learning_rate, config.warmup), mx.float32),
            mx.array(float(step >= config.quantise_from)),
            mx.array(float(step >= config.quantise_from and step % config.restart_every == 0)),
            mx.random.key(config.seed * 1_000_003 + step * self.team.size + self.team.rank),
        )
        with_critic = step >= config.critic_from
        if with_critic not in self._steps:
            function = self._critic_step if with_critic else self._plain_step
            # On a CPU each fused kernel goes through the C++ compiler: minutes, for nothing gained.
            fused = config.compile and mx.default_device().type == mx.DeviceType.gpu
            self._steps[with_critic] = mx.compile(function) if fused else function
        return self._steps[with_critic](state, *(mx.array(part) for part in batch), control)  # type: ignore[no-any-return]

    def seed_books(self, state: State, batches: list[Batch]) -> State:
        """Put the centroids where the latents of these batches lie."""
        projected: dict[str, list[mx.array]] = {branch: [] for branch in BRANCHES}
        self._load(state.weights)
        for batch in batches:
            latent = self._latents(mx.array(batch.heard))
            for name in BRANCHES:
                branch = self.model.quantizer[name]
                projected[name].append(branch.input_proj(latent).reshape(-1, branch.centroids.shape[2]))
            mx.eval(projected)
        books = {}
        for i, name in enumerate(BRANCHES):
            n_books, bins, _ = state.books[name].sums.shape
            key = mx.random.key(self.config.seed + 10 + i)
            found = residual_k_means(mx.concatenate(projected[name]), n_books, bins, key)
            books[name] = Books(*map(self.team.first, found))
        mx.eval(books)
        return state._replace(books=books)

    def export(self, state: State) -> Mimi:
        """The codec as it stands: the trainer's own model, ready to encode and decode."""
        self._load(state.weights)
        for name in BRANCHES:
            self.model.quantizer[name].centroids = state.books[name].centroids
        self.model.quantizer.prepare()
        mx.eval(parameters(self.model))
        return self.model

    def _load(self, weights: Arrays) -> None:
        self.model.update(tree_unflatten([(n, w) for n, w in weights.items() if not n.startswith("phones.")]))

    def _cast(self, tree: Any) -> Any:
        dtype = DTYPES[self.config.precision]
        return tree_map(lambda a: a.astype(dtype) if a.dtype == mx.float32 else a, tree)

    def _latents(self, pcm: mx.array) -> mx.array:
        state = self._cast(self.model.init_encoder(pcm.shape[0]))
        return self.model.latents(self._cast(pcm), state)[0].astype(mx.float32)

    def _branch(
        self,
        name: str,
        weights: Arrays,
        latent: mx.array,
        state: State,
        control: Control,
        kept: mx.array,
        key: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array, Books]:
        """Latent [N, width] -> the branch's vectors [N, dim], its codes, commitment and moved books.

        Before `quantise_from` the vectors pass unquantised and the books stay.
        """
        vectors = latent @ weights[f"quantizer.{name}.input_proj.weight"].T
        made = quantise(vectors, state.books[name], kept, control.restart, key, self.team)
        on = control.quantised > 0
        books = Books(*(mx.where(on, new, old) for new, old in zip(made.books, state.books[name], strict=True)))
        return mx.where(on, made.vectors, vectors), made.codes, made.commitment * control.quantised, books

    def _forward(
        self, weights: Arrays, state: State, crops: Crops, control: Control
    ) -> tuple[mx.array, mx.array, Arrays, dict[str, Books]]:
        """-> the loss but for the critic's, the waveform [B, S], numbers to log, the books."""
        config, share = self.config, self.config.weights
        n_books = config.mimi.quantizer.n_q - 1
        self._load(self._cast(weights))
        heard, target, labels = crops
        slots, n_frames = labels.shape[:2]
        latent = self._latents(heard).reshape(slots * n_frames, -1)
        keys = mx.random.split(control.key, 4)
        fewer = mx.random.uniform(shape=(slots,), key=keys[0]) < config.fewer_books
        kept = mx.where(fewer, mx.random.randint(0, n_books, (slots,), key=keys[1]), n_books)
        kept = mx.repeat(kept, n_frames)

        one = mx.ones_like(kept)
        meaning, code, far, semantic = self._branch("semantic", weights, latent, state, control, one, keys[2])
        sound, codes, apart, acoustic = self._branch("acoustic", weights, latent, state, control, kept, keys[3])
        quantizer = self.model.quantizer
        both = quantizer.semantic.output_proj(self._cast(meaning)) + quantizer.acoustic.output_proj(self._cast(sound))
        decoder = self._cast(self.model.init_decoder(slots))
        pcm = self.model.waveform(both.reshape(slots, n_frames, -1), decoder)[0].astype(mx.float32)

        logits = meaning @ weights["phones.weight"].T + weights["phones.bias"]
        logits = logits.reshape(slots, n_frames, LABELS, self.n_phones)
        spoken = labels > 0
        numbers = {
            "mel": mel_distance(pcm, target),
            "envelope": envelope_distance(pcm, target),
            "pitch": pitch_distance(pcm, target),
            "wave": mx.abs(pcm - target).mean(),
            "commitment": far + apart,
            "phones": cross_entropy(logits, labels),
        }
        loss = sum((getattr(share, name) * value for name, value in numbers.items()), mx.array(0.0)) / share.divisor
        right = (mx.argmax(logits, axis=-1) == labels) & spoken
        numbers |= {
            "phones_right": right.sum() / mx.maximum(spoken.sum(), 1),
            "semantic_codes": perplexity(code[:, 0], self.model.n_bins),
            "acoustic_codes": perplexity(codes[:, 0], self.model.n_bins),
        }
        return loss, pcm, numbers, {"semantic": semantic, "acoustic": acoustic}

    def _update(
        self, state: State, gradients: Arrays, books: dict[str, Books], rate: mx.array
    ) -> tuple[State, mx.array]:
        gradients = self.team.mean(gradients)
        betas = (self.config.betas[0], self.config.betas[1])
        weights, moments, norm = adamw(
            state.weights, gradients, state.moments, rate, betas, self.config.decay, self.config.largest_norm
        )
        return state._replace(weights=weights, moments=moments, books=books), norm

    def _plain_step(
        self, state: State, heard: mx.array, target: mx.array, phones: mx.array, control: Control
    ) -> tuple[State, Arrays]:
        def loss(weights: Arrays) -> tuple[mx.array, Arrays, dict[str, Books]]:
            value, _, numbers, books = self._forward(weights, state, (heard, target, phones), control)
            return value, numbers, books

        (value, numbers, books), gradients = mx.value_and_grad(loss)(state.weights)
        after, norm = self._update(state, gradients, books, control.learning_rate)
        return after, {"loss": value, **numbers, "norm": norm}

    def _critic_step(
        self, state: State, heard: mx.array, target: mx.array, phones: mx.array, control: Control
    ) -> tuple[State, Arrays]:
        config, share = self.config, self.config.weights
        last = -config.critic_frames * FRAME_SAMPLES
        real = target[:, last:]

        def judge(weights: Arrays, pcm: mx.array) -> list[list[mx.array]]:
            self.critic.update(tree_unflatten(list(weights.items())))
            return self.critic(pcm)

        def loss(weights: Arrays) -> tuple[mx.array, Arrays, dict[str, Books], mx.array]:
            value, pcm, numbers, books = self._forward(weights, state, (heard, target, phones), control)
            verdict, features = pleasing_loss(judge(state.critic, real), judge(state.critic, pcm[:, last:]))
            value = value + (share.verdict * verdict + share.features * features) / share.divisor
            return value, numbers | {"verdict": verdict, "features": features}, books, pcm

        (value, numbers, books, pcm), gradients = mx.value_and_grad(loss)(state.weights)
        made = mx.stop_gradient(pcm[:, last:])
        wrong, critic_gradients = mx.value_and_grad(lambda w: critic_loss(judge(w, real), judge(w, made)))(state.critic)
        after, norm = self._update(state, gradients, books, control.learning_rate)
        critic_gradients, rate = self.team.mean(critic_gradients), control.learning_rate / 2
        critic, moments, _ = adamw(state.critic, critic_gradients, state.critic_moments, rate, (0.5, 0.9), 0.0, 10.0)
        return after._replace(critic=critic, critic_moments=moments), {
            "loss": value,
            **numbers,
            "critic": wrong,
            "norm": norm,
        }


@dataclass(frozen=True)
class CropsOf:
    """Opens a corpus in a process that cuts batches; see `feed`."""

    corpus: Path
    config: CodecTraining
    size: int

    def __call__(self) -> Callable[[int], Batch]:
        """The function from step to batch."""
        return partial(crops, Corpus(self.corpus), self.config, self.size)


def crops(corpus: Corpus, config: CodecTraining, size: int, step: int) -> Batch:
    """The `size` crops of a step."""
    return corpus.batch(config.seed, step, size, config.crop_frames, config.shares, config.heard_badly)


def train_codec(
    run: Run,
    config: CodecTraining,
    corpus: Corpus,
    stop_after_seconds: float | None = None,
    batches: Callable[[int], Batch] | None = None,
    start_from: Path | None = None,
    team: Team | None = None,
) -> tuple[CodecTrainer, State, bool]:
    """Train until `config.steps`, from where `run` stands -> trainer, state, and whether all steps are done.

    Every checkpoint writes a `mimi.safetensors` to be used; with a `team`, its first process's `run` does.

    `batches` gives this process's crops of a step if somebody cuts them ahead; `start_from` is a codec to begin with
    (with `quantise_from` 0 its codebooks stay). Stops earlier after `stop_after_seconds`; Ctrl-C saves and is raised
    again. Raises TrainingError when the loss is no number, or a checkpoint cannot be read or written.
    """
    team = team or Team()
    trainer = CodecTrainer(config, corpus.n_phones, team)
    state, done = trainer.init_state(start_from), 0
    if (restored := run.restore()) is not None:
        done, state = restored[0], unpack(state, restored[1])
        run.say(f"resumed at step {done}")
    began, waiting, window = time.monotonic(), None, []
    saved = done
    batches = batches or team.deal(lambda: partial(crops, corpus, config, team.share(config.batch)))()
    try:
        while done < config.steps:
            if done == config.quantise_from and not (start_from and not done):
                ahead = range(done, done + config.k_means_batches)
                state = trainer.seed_books(state, [crops(corpus, config, config.batch, step) for step in ahead])
            state, numbers = trainer.step(state, batches(done), done)
            done += 1
            # One step is computed while the next one's batch is cut; waiting for the one before keeps it at that.
            mx.async_eval(state, numbers)  # type: ignore[no-untyped-call]
            mx.eval(waiting)
            waiting = numbers
            window.append(numbers)
            reporting = done % config.log_every == 0 or done == config.steps
            late = stop_after_seconds is not None and time.monotonic() - began > stop_after_seconds
            if team.size > 1:  # asking the others costs a step's head start
                late = reporting and team.any(late)
            if reporting or late:
                _report(run, done, window)
                window = []
            if done % config.save_every == 0 or done == config.steps or late:
                run.save(done, pack(state))
                if run.writes:
                    save_mimi(run.folder / "mimi.safetensors", trainer.export(state), config.mimi)
                run.plot()
                saved = done
            if late:
                break
    except KeyboardInterrupt:
        if done > saved:
            run.save(done, pack(state))
        raise
    return trainer, state, done >= config.steps


def _report(run: Run, step: int, window: list[Arrays]) -> None:
    """Log the means since the last report."""
    names = window[-1]
    means = {}
    for name in names:
        values = [float(np.array(numbers[name])) for numbers in window if name in numbers]
        means[name] = sum(values) / len(values)
    run.log(step, **means)
    if not math.isfinite(means["loss"]):
        raise TrainingError(
            f"the loss is no number any more at step {step}; resume from the checkpoint before with a smaller learning "
            "rate, in another folder"
        )

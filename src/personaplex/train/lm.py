"""Training the language model: teacher forcing over whole dialogues, as Moshi was trained (Défossez et al. 2024, §3.4).

Each column predicts the next one: its text token from the temporal transformer, its 8 agent codes from the depformer,
which is given the right text token and the right earlier codes. The user's streams are heard, never predicted. Two
heads are for training alone, and name the word that the user has just finished: one out of the bank's vocabulary, which
teaches hearing in a minute; one by the embedding of its first text piece, so that what was heard becomes comparable
with what was read in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import NamedTuple, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from personaplex.checkpoint.load import load_lm
from personaplex.checkpoint.save import save_lm
from personaplex.config import LMConfig
from personaplex.errors import TrainingError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import AGENT, N_STREAMS, TEXT
from personaplex.nn.state import parameters
from personaplex.train.adamw import Arrays, Moments, adamw, cosine, init_moments
from personaplex.train.compose import Batch, Composition
from personaplex.train.init import initialise
from personaplex.train.run import Run, pack, unpack
from personaplex.train.team import Team
from personaplex.units import N_CODEBOOKS


@dataclass(frozen=True)
class LMTraining:
    """How a language model is trained. Weights of losses are relative; `audio_weights` are per codebook.

    A team averages its gradients in every step; with `average_every` n each goes n steps alone, then they average
    weights and moments (local SGD, Lin et al. 2018), where a message costs more than a step.
    """

    lm: LMConfig
    composition: Composition = field(default_factory=Composition)
    steps: int = 15_000
    batch: int = 64
    learning_rate: float = 1.2e-3
    warmup: int = 200
    final_rate: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.999
    text_weight: float = 3.0
    fact_weight: float = 2.0
    heard_weight: float = 1.0
    audio_weights: tuple[float, ...] = (2.0, 1.0, 1.0, 0.7, 0.7, 0.5, 0.5, 0.5)
    precision: str = "bfloat16"
    compile: bool = True
    average_every: int = 1
    seed: int = 1
    checkpoint_every: int = 1_000
    log_every: int = 50

    def __post_init__(self) -> None:
        if self.precision not in ("bfloat16", "float32"):
            raise TrainingError(f"precision is {self.precision!r}; bfloat16 or float32 is possible")
        if len(self.audio_weights) != N_CODEBOOKS:
            raise TrainingError(f"audio_weights must hold {N_CODEBOOKS} numbers")
        if self.average_every < 1:
            raise TrainingError("average_every must be at least 1")


class Trainee(nn.Module):
    """The model, and the heads that name what was heard; `pieces` are the first text pieces of the bank's words."""

    def __init__(self, config: LMConfig, pieces: Sequence[int]) -> None:
        super().__init__()
        self.model = LanguageModel(config, N_CODEBOOKS)
        self.heard = nn.Linear(config.dim, len(pieces), bias=False)
        self.heard_as_text = nn.Linear(config.dim, config.dim, bias=False)
        self._pieces = mx.array(list(pieces), mx.int32)


def losses(trainee: Trainee, batch: Batch, audio_weights: mx.array, fact_weight: float = 1.0) -> dict[str, mx.array]:
    """Mean losses `text`, `heard` and `audio`, and the shares of right words, facts and heard words."""
    model = trainee.model
    columns = model.columns(batch.frames)
    z = model.hidden(columns[:, :-1], batch.pinned)
    flat = z.reshape(-1, z.shape[-1])

    text = batch.frames[:, TEXT]
    text_weight = batch.text_weight * mx.where(batch.fact, fact_weight, 1.0)
    logits = model.text_head(z).astype(mx.float32)
    found: dict[str, mx.array] = {"text": _mean(nn.losses.cross_entropy(logits, text), text_weight)}
    right = mx.stop_gradient(mx.argmax(logits, axis=-1) == text)
    found["words_right"] = _mean(right, (text > 3) * (text_weight > 0))
    found["facts_right"] = _mean(right, batch.fact)

    hearing, word, known = flat[batch.heard_at], mx.maximum(batch.heard, 0), batch.heard >= 0
    heard = trainee.heard(hearing).astype(mx.float32)
    found["heard"] = _mean(nn.losses.cross_entropy(heard, word), known)
    as_text = (trainee.heard_as_text(hearing) @ model.text_emb.weight[0].T).astype(mx.float32)
    found["heard_as_text"] = _mean(nn.losses.cross_entropy(as_text, trainee._pieces[word]), known)
    found["heard_right"] = _mean(mx.stop_gradient(mx.argmax(heard, axis=-1) == batch.heard), known)

    target = columns[:, 1:].reshape(-1, N_STREAMS)[batch.audio_at]
    codes = mx.minimum(target[:, AGENT], model.config.card - 1)
    spoken = model.depformer.teacher_forced(flat[batch.audio_at], target[:, TEXT], codes).astype(mx.float32)
    by_code = nn.losses.cross_entropy(spoken, codes)
    weight = batch.audio_weight * (target[:, AGENT] < model.config.card)
    found["audio"] = _mean(by_code, weight * audio_weights)
    found["semantic"] = mx.stop_gradient(_mean(by_code[:, 0], weight[:, 0]))
    return found


def _mean(values: mx.array, weight: mx.array) -> mx.array:
    weight = weight.astype(mx.float32)
    return (values * weight).sum() / mx.maximum(weight.sum(), 1e-6)


class LMState(NamedTuple):
    """Everything that a training needs to go on as if it had never stopped: weights, their average, moments."""

    weights: Arrays
    average: Arrays
    moments: Moments


class LMTrainer:
    """A step from state and batch to the next state. The modules hold nothing between steps."""

    def __init__(self, config: LMTraining, pieces: Sequence[int], team: Team | None = None) -> None:
        self.config, self.team = config, team or Team()
        self.trainee = Trainee(config.lm, pieces)
        self._step = mx.compile(self._advance) if config.compile else self._advance

    def init_state(self, start_from: Path | None = None) -> LMState:
        """Random weights by the configuration's seed, or those of a trained model."""
        initialise(self.trainee, self.config.seed)
        if start_from:
            self.trainee.model.update(load_lm(start_from, self.config.lm, dtype=mx.float32).parameters())
        weights = parameters(self.trainee)
        return LMState(weights, dict(weights), init_moments(weights))

    def step(self, state: LMState, batch: Batch, step: int) -> tuple[LMState, Arrays]:
        """Learn from one batch: the next state and numbers to log, nothing of it evaluated yet."""
        c = self.config
        rate = mx.array(cosine(step, c.steps, c.learning_rate, c.warmup, c.final_rate))
        # An average over fewer steps at first, or the random start would weigh for long.
        decay = mx.array(min(c.average, (step + 1) / (step + 10)))
        return self._step(state, batch, rate, decay)

    def _advance(self, state: LMState, batch: Batch, rate: mx.array, decay: mx.array) -> tuple[LMState, Arrays]:
        c = self.config
        narrow = mx.bfloat16 if c.precision == "bfloat16" else mx.float32
        audio_weights = mx.array(c.audio_weights)

        def total(weights: Arrays) -> tuple[mx.array, Arrays]:
            self.trainee.update(tree_unflatten([(name, w.astype(narrow)) for name, w in weights.items()]))
            found = losses(self.trainee, batch, audio_weights, c.fact_weight)
            heard = c.heard_weight * (found["heard"] + found["heard_as_text"])
            return c.text_weight * found["text"] + found["audio"] + heard, found

        (loss, found), gradients = mx.value_and_grad(total)(state.weights)
        if c.average_every == 1:
            gradients = self.team.mean(gradients)
        weights, moments, norm = adamw(
            state.weights, gradients, state.moments, rate, (0.9, 0.95), c.weight_decay, c.clip
        )
        average = {name: a * decay + weights[name] * (1 - decay) for name, a in state.average.items()}
        return LMState(weights, average, moments), {"loss": loss, "norm": norm, **found}

    def meet(self, state: LMState) -> LMState:
        """The mean of the team's states."""
        return unpack(state, self.team.mean(pack(state)))

    def export(self, state: LMState) -> LanguageModel:
        """The averaged weights as a model."""
        model = LanguageModel(self.config.lm, N_CODEBOOKS)
        model.update(tree_unflatten([(n[6:], w) for n, w in state.average.items() if n.startswith("model.")]))
        return model


def train_lm(
    run: Run,
    config: LMTraining,
    batches: Callable[[int], Batch],
    pieces: Sequence[int],
    *,
    start_from: Path | None = None,
    stop_after_seconds: float | None = None,
    team: Team | None = None,
) -> LanguageModel:
    """Train until `config.steps`, from where `run` stands; every checkpoint writes a `model.safetensors` to be used.

    `batches(step)` gives the batch of a step (this process's share of it, in a `team`), the same one each time it is
    asked for; `pieces` as in `Trainee`. Ctrl-C saves and is raised again. Raises TrainingError when the loss is no
    number, or a checkpoint cannot be read or written.
    """
    team = team or Team()
    trainer, done = LMTrainer(config, pieces, team), 0
    state = trainer.init_state(start_from)
    if restored := run.restore():
        done, state = restored[0], unpack(state, restored[1])
        run.say(f"resumed at step {done}")
    began, saved, waiting, starved = monotonic(), done, mx.array(0), 0.0
    try:
        while done < config.steps:
            asked = monotonic()
            batch = batches(done)
            starved += monotonic() - asked
            state, found = trainer.step(state, batch, done)
            done += 1
            # One step is computed while the next one's batch is fetched; waiting for the one before keeps it at that.
            mx.async_eval(state, found)
            mx.eval(waiting)
            waiting = found["loss"]
            reporting = done % config.log_every == 0 or done == config.steps
            late = stop_after_seconds is not None and monotonic() - began > stop_after_seconds
            if team.size > 1:  # asking the others costs a step's head start
                late = reporting and team.any(late)
            if reporting or late:
                _report(run, done, found, starved)
            saving = done % config.checkpoint_every == 0 or done == config.steps or late
            if config.average_every > 1 and (saving or done % config.average_every == 0):
                state = trainer.meet(state)
            if saving:
                run.save(done, pack(state))
                if run.writes:
                    save_lm(run.folder / "model.safetensors", trainer.export(state))
                saved = done
            if late:
                break
    except KeyboardInterrupt:
        if done > saved:
            run.save(done, pack(state))
        raise
    run.plot()
    return trainer.export(state)


def _report(run: Run, step: int, found: Arrays, starved: float) -> None:
    numbers = {name: float(cast(float, value.item())) for name, value in found.items()}
    run.log(step, **numbers, seconds_without_batch=starved)
    if not isfinite(numbers["loss"]):
        raise TrainingError(
            f"the loss is no number any more at step {step}; begin another run with a smaller learning rate"
        )

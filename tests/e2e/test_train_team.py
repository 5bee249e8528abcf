"""Two processes that train one model: the same steps as one process with both halves of every batch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.errors import TrainingError
from personaplex.text import Tokenizer
from personaplex.train.codec import CodecTrainer, LossWeights, crops, train_codec
from personaplex.train.compose import Batch as Dialogues
from personaplex.train.compose import Composer, Composition
from personaplex.train.corpus import Batch, Corpus
from personaplex.train.lm import LMTrainer, LMTraining
from personaplex.train.run import Run, pack
from personaplex.train.team import Team
from tests.unit import test_train_codec as codec
from tests.unit import test_train_lm as lm

corpus = codec.corpus

# No loss that is parted by what a batch holds, no draw that depends on who makes it.
CONFIG = replace(
    codec.CONFIG, batch=2, steps=14, restart_every=100, fewer_books=0.0, weights=LossWeights(envelope=0, pitch=0)
)

LM = LMTraining(lm.SMALL, steps=3, batch=2, warmup=1, precision="float32", compile=False, average_every=3)


def dialogues(step: int) -> Dialogues:
    """One dialogue of a toy bank."""
    tokenizer = Tokenizer(lm.TOKENIZER, lm.SMALL.text_card)
    composer = Composer(lm.toy_bank(), tokenizer, Composition(longest_prompt=300, n_frames=320), seed=5)
    return lm.as_arrays(composer.batch(step, 1))


PROGRAM = """
import sys
from dataclasses import asdict
from pathlib import Path

from personaplex.train.codec import train_codec
from personaplex.train.corpus import Corpus
from personaplex.train.lm import train_lm
from personaplex.train.run import Follower, Run, pack
from personaplex.train.team import Team
from tests.e2e.test_train_team import CONFIG, LM, dialogues, lm

import mlx.core as mx

folder, corpus = map(Path, sys.argv[1:])
team = Team.join()
Keeper = Run if team.rank == 0 else Follower
assert team.any(team.rank == 1) and not team.any(False)
_, state, done = train_codec(Keeper(folder / "codec", asdict(CONFIG)), CONFIG, Corpus(corpus), team=team)
assert done
mx.save_safetensors(str(folder / f"codec-{team.rank}.safetensors"), pack(state))
train_lm(Keeper(folder / "lm", asdict(LM)), LM, lambda step: dialogues(2 * step + team.rank), lm.WORDS, team=team)
"""


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--backend", "ring", "--cwd", "."]
    launch += ["--env", "PYTHONPATH=.:src", "--python", sys.executable, str(program), str(folder), str(corpus.folder)]
    done = subprocess.run(
        launch, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400, check=False
    )
    # The launcher ends well even if what it launched did not.
    assert (folder / "lm" / "model.safetensors").exists(), done.stdout + done.stderr
    return folder


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in dict(mx.load(str(path))).items()}  # type: ignore[arg-type]


def test_two_processes_take_the_steps_of_one(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    first, second = (arrays(trained / f"codec-{rank}.safetensors") for rank in (0, 1))
    assert all(np.array_equal(first[name], second[name]) for name in first)

    def both(step: int) -> Batch:
        halves = [crops(corpus, CONFIG, 1, 2 * step + rank) for rank in (0, 1)]
        return Batch(*map(np.concatenate, zip(*halves, strict=True)))

    def only_the_first(step: int) -> Batch:
        return crops(corpus, CONFIG, 1, 2 * step)

    _, state, _ = train_codec(Run(tmp_path / "alone", asdict(CONFIG)), CONFIG, corpus, batches=both)
    expected = pack(state)
    assert first.keys() == expected.keys()
    # Where a gradient is next to nothing, the sign of its rounding decides which way a weight goes; few do.
    begun = pack(CodecTrainer(CONFIG, corpus.n_phones).init_state().weights)
    _, half, _ = train_codec(Run(tmp_path / "half", asdict(CONFIG)), CONFIG, corpus, batches=only_the_first)

    def distance(weights: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum(np.square(weights[name] - other[name]).sum() for name in other)))

    before, alone, lonely = (
        {name: np.array(array) for name, array in weights.items()} for weights in (begun, state.weights, half.weights)
    )
    together = {name: first[f"0.{name}"] for name in alone}
    moved = distance(alone, before)
    assert distance(together, alone) < 0.05 * moved
    assert distance(lonely, alone) > 0.3 * moved, "half of every batch would not have been enough"
    assert [line["step"] for line in Run(trained / "codec", asdict(CONFIG)).lines()] == [5, 10, 14]


def test_processes_that_meet_now_and_then_have_the_mean_of_their_weights(trained: Path) -> None:
    found = arrays(trained / "lm" / "step-00000003.safetensors")
    states = []
    for rank in (0, 1):
        trainer = LMTrainer(LM, lm.WORDS)
        state = trainer.init_state()
        for step in range(LM.steps):
            state, _ = trainer.step(state, dialogues(2 * step + rank), step)
        states.append({name: np.array(array) for name, array in pack(state).items()})
    moved = 0.0
    for name, array in found.items():
        np.testing.assert_allclose(array, (states[0][name] + states[1][name]) / 2, atol=2e-5, err_msg=name)
        moved = max(moved, np.abs(states[0][name] - states[1][name]).max())
    assert moved > 1e-3, "they had learned different things"


def test_what_cannot_be_parted_is_said() -> None:
    with pytest.raises(TrainingError, match="a batch of 3 cannot be parted among 2"):
        Team(0, 2).share(3)


def test_alone_nothing_is_added_up() -> None:
    team = Team.join()
    assert (team.rank, team.size) == (0, 1)
    assert team.first(mx.array([2.0])).item() == 2.0 and team.any(True) and not team.any(False)

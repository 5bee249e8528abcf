"""The clip bank's sound: every line that may be said in a training dialogue, synthesised once.

Dialogues are composed from these clips with fresh facts, prompts and timing each time (see `compose`), so that nothing
said in training is ever replayed as a whole. Clips are made in shards by several processes; a shard depends on the seed
and its own number alone, so the bank is the same whatever the number of processes, and making it can be resumed.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from personaplex.dialogue import VALUES, Line, Split, agent_plan, user_plan
from personaplex.errors import TrainingError
from personaplex.files import whole_file
from personaplex.speech import AGENTS, Speaker, Utterance, degrade, noise, say, sound, user_speaker
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

SHARD_CLIPS = 500
LEAD_FRAMES, TAIL_FRAMES = 12, 2
"""Sound before a clip that its codes depend on, and frames after its last sample in which it still rings."""

PHASES = 16
"""Parts of a frame that are told apart where a word begins in it."""

DEGRADED, OWN_NOISE = 0.5, 0.5
"""Share of the users' clips with a room, a microphone and noise; and of those, the share whose noise precedes them."""

PAUSED, HESITANT = 0.3, 0.3
"""Share of the users' longer clips with a pause between two words, and with a filler or a false start."""

FILLERS = ("um", "uh", "well", "so", "okay so", "hey", "hi", "excuse me", "sorry", "please", "oh", "um so")


@dataclass(frozen=True)
class ClipsConfig:
    """How many lines each agent's voice says at most, and clips of users, of no speech, and of background noise.

    `invented` is the share of the agents' names, companies and streets that nobody else has.
    """

    seed: int = 1
    agent_lines: int = 10_000
    invented: float = 0.5
    user_clips: int = 100_000
    sounds: int = 3_000
    beds: int = 1_500
    bed_frames: int = 150
    split: str = "train"

    def __post_init__(self) -> None:
        if self.split not in VALUES:
            raise TrainingError(f"split is {self.split!r}; {' or '.join(VALUES)} is possible")


@dataclass(frozen=True)
class Job:
    """One clip to be made. `voice` is the agent's number, -1 for users, sounds and beds."""

    kind: str
    voice: int
    line: Line | None
    speaker: Speaker | None
    degraded: bool
    seed: int


@dataclass(frozen=True)
class Clip:
    """What is known of a clip: frames count from its first, which holds the first sample of speech.

    `words` are (word, frame in which it begins, frame in which it ends), `phases` and `end_phases` how far into these
    frames it begins and ends, in 16ths; `pause` is the first frame of a pause in mid-sentence and the first after it.
    `lead` frames of its own noise precede the clip in the file; where it is 0 the clip follows digital silence.
    """

    kind: str
    voice: int
    line: tuple[str, tuple[str, ...], str] | None
    words: tuple[tuple[str, int, int], ...]
    lead: int
    frames: int
    pause: tuple[int, int] = (0, 0)
    phases: tuple[int, ...] = ()
    end_phases: tuple[int, ...] = ()


def plan(config: ClipsConfig) -> list[Job]:
    """Every clip, in an order in which each shard takes about as long as another."""
    jobs: list[Job] = []
    if config.split == "train":
        for number, speaker in enumerate(AGENTS.values()):
            rng = np.random.default_rng([config.seed, 1, number])
            lines = agent_plan(rng, config.invented)
            chosen = rng.permutation(len(lines))[: config.agent_lines]
            jobs += [Job("agent", number, lines[i], speaker, False, 0) for i in chosen]
    rng = np.random.default_rng([config.seed, 2])
    for line in user_plan(rng, config.user_clips, cast(Split, config.split)):
        said = _hesitant(rng, line) if config.split == "train" else line
        jobs.append(Job("user", -1, said, user_speaker(rng), bool(rng.random() < DEGRADED), 0))
    jobs += [Job("sound", -1, None, None, bool(rng.random() < DEGRADED), 0) for _ in range(config.sounds)]
    jobs += [Job("bed", -1, None, None, False, 0) for _ in range(config.beds)]
    order = np.random.default_rng([config.seed, 3]).permutation(len(jobs))
    return [Job(**{**jobs[j].__dict__, "seed": i}) for i, j in enumerate(order)]


def _hesitant(rng: np.random.Generator, line: Line) -> Line:
    """The line as people say it: now and then after a filler, or begun twice."""
    words = line.text.split()
    drawn = rng.random()
    if drawn > HESITANT or line.intent in ("backchannel", "wait", "unknown"):
        return line
    begun = words[: int(rng.integers(1, 3))] if drawn < HESITANT / 4 else []
    filler = FILLERS[rng.integers(len(FILLERS))].split() if not begun else []
    return replace(line, text=" ".join([*filler, *begun, *words]))


def make_clips(folder: Path, config: ClipsConfig, processes: int, say_progress: Callable[[str], None]) -> None:
    """Make every shard that is not in `folder` yet.

    Raises TrainingError when the folder holds another plan's clips, and SynthesisError without a synthesiser.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "clips.json"
    if about.exists() and json.loads(about.read_text()) != asdict(config):
        raise TrainingError(f"{folder} holds clips made with other settings; choose another folder or remove it")
    about.write_text(json.dumps(asdict(config)))
    jobs = plan(config)
    shards = [(folder, config, i, jobs[at : at + SHARD_CLIPS]) for i, at in enumerate(range(0, len(jobs), SHARD_CLIPS))]
    missing = [shard for shard in shards if not _table(folder, shard[2]).exists()]
    seconds = 0.0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, made in enumerate(pool.imap_unordered(_make_shard, missing), 1):
            seconds += made
            if done % 20 == 0 or done == len(missing):
                say_progress(f"clips: shard {done} of {len(missing)}, {seconds / 3600:.1f} h of sound")


def read_clips(folder: Path, part: int = 0, parts: int = 1) -> Iterator[tuple[Clip, np.ndarray]]:
    """Every clip with its samples (int16, with its lead), in the plan's order; or one of `parts` stretches of it.

    Raises TrainingError when the folder holds no clips, or not all of them.
    """
    tables = sorted(folder.glob("clips-*.json"))
    if not tables:
        raise TrainingError(f"{folder} holds no clips; make them with `personaplex train clips`")
    for table in tables[len(tables) * part // parts : len(tables) * (part + 1) // parts]:
        pcm, at = np.load(table.with_suffix(".npy"), mmap_mode="r"), 0
        for entry in json.loads(table.read_text()):
            clip = _clip(entry)
            n_samples = (clip.lead + clip.frames) * FRAME_SAMPLES
            yield clip, pcm[at : at + n_samples]
            at += n_samples


def _clip(entry: dict[str, object]) -> Clip:
    clip = Clip(**entry)  # type: ignore[arg-type]
    line = clip.line and (clip.line[0], tuple(clip.line[1]), clip.line[2])
    words = tuple((word, first, last) for word, first, last in clip.words)
    pause = clip.pause[0], clip.pause[1]
    phases, end_phases = tuple(clip.phases), tuple(clip.end_phases)
    return replace(clip, line=line, words=words, pause=pause, phases=phases, end_phases=end_phases)


def _table(folder: Path, shard: int) -> Path:
    return folder / f"clips-{shard:04d}.json"


def _make_shard(shard: tuple[Path, ClipsConfig, int, list[Job]]) -> float:
    folder, config, number, jobs = shard
    made = [_make(job, config) for job in jobs]
    path = _table(folder, number)
    with whole_file(path.with_suffix(".npy")) as name:
        np.save(name, np.concatenate([pcm for _, pcm in made]))
    with whole_file(path) as name:  # last: a shard with a table is whole
        name.write_text(json.dumps([asdict(clip) for clip, _ in made]))
    return sum(len(pcm) for _, pcm in made) / SAMPLE_RATE


def _make(job: Job, config: ClipsConfig) -> tuple[Clip, np.ndarray]:
    rng = np.random.default_rng([config.seed, 4, job.seed])
    words: tuple[tuple[str, int, int], ...] = ()
    phases: tuple[int, ...] = ()
    end_phases: tuple[int, ...] = ()
    if job.kind == "bed":
        pcm = noise(rng, (LEAD_FRAMES + config.bed_frames) * FRAME_SAMPLES)
        return Clip("bed", -1, None, (), LEAD_FRAMES, config.bed_frames), _int16(pcm)
    # A user may begin anywhere within a frame. What an agent says begins with one, so that lines which begin alike have
    # their words at the same times (train/beginnings.py).
    offset, pause = 0 if job.kind == "agent" else int(rng.integers(FRAME_SAMPLES)), (0, 0)
    if job.speaker is not None and job.line is not None:
        said = say(job.speaker, job.line.text)
        if job.kind == "user" and len(said.words) > 3 and rng.random() < PAUSED:
            at = said.words[int(rng.integers(1, len(said.words)))].start
            n = int(rng.uniform(0.4, 1.4) * SAMPLE_RATE)
            said = _paused(said, at, n)
            pause = -(-(offset + at) // FRAME_SAMPLES), (offset + at + n) // FRAME_SAMPLES
        pcm = said.pcm
        words = tuple(
            (w.text, (offset + w.start) // FRAME_SAMPLES, (offset + w.end) // FRAME_SAMPLES) for w in said.words
        )
        phases, end_phases = (
            tuple((offset + getattr(w, end)) % FRAME_SAMPLES * PHASES // FRAME_SAMPLES for w in said.words)
            for end in ("start", "end")
        )
    else:
        pcm = sound(rng, int(rng.integers(SAMPLE_RATE // 4, 3 * SAMPLE_RATE)))
    frames = -(-(offset + len(pcm)) // FRAME_SAMPLES)
    lead = LEAD_FRAMES if job.degraded and rng.random() < OWN_NOISE else 0
    padded = np.zeros((lead + frames + (TAIL_FRAMES if lead else 0)) * FRAME_SAMPLES, np.float32)
    padded[lead * FRAME_SAMPLES + offset :][: len(pcm)] = pcm
    if job.degraded:
        padded = degrade(rng, padded)
    elif job.kind == "user":
        padded *= 10 ** (rng.uniform(-12, 4) / 20)
    line = (job.line.intent, job.line.key, job.line.text) if job.line else None
    n_frames = len(padded) // FRAME_SAMPLES - lead
    return Clip(job.kind, job.voice, line, words, lead, n_frames, pause, phases, end_phases), _int16(padded)


def _paused(said: Utterance, at: int, n: int) -> Utterance:
    """The utterance with `n` samples of silence before sample `at`, faded in and out over 10 ms."""
    fade = np.linspace(1, 0, SAMPLE_RATE // 100, dtype=np.float32)
    before, after = said.pcm[:at].copy(), said.pcm[at:].copy()
    before[-len(fade) :] *= fade[-len(before) :]
    after[: len(fade)] *= fade[::-1][: len(after)]
    words = tuple(w if w.start < at else w._replace(start=w.start + n, end=w.end + n) for w in said.words)
    return replace(said, pcm=np.concatenate([before, np.zeros(n, np.float32), after]), words=words)


def _int16(pcm: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.round(np.clip(pcm, -1, 1) * 32767).astype(np.int16))

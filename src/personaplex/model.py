"""PersonaPlex as a library: load a model once, then respond to speech in one call, in chunks, or frame by frame."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import mlx.core as mx
import numpy as np

from personaplex.audio import Framer, as_chunk, as_mono, normalise_loudness, read_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.checkpoint.user_voices import LONGEST_VOICE_SECONDS
from personaplex.checkpoint.voices import SUFFIXES, voice_from_file
from personaplex.cuda.kernel import enabled
from personaplex.diagnosis import StepDiagnosis, diagnose_step
from personaplex.engine.duplex import Duplex
from personaplex.engine.generator import Generator, check_kv_bits
from personaplex.engine.prompt import NO_PROMPTS, Prompt, compose
from personaplex.engine.sampling import Ceiling, Sampling, check_seed
from personaplex.errors import AudioError, PersonaError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.reply import AgentFrame, Reply, TalkState
from personaplex.talk import ReplyStream, StopRule, Talk
from personaplex.text import EPAD, PROMPTS, Tokenizer, role_text
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from personaplex.voice import Voice

DEFAULT_VOICE = "NATM0"
DEFAULT_PROMPT = "assistant"
DEFAULT_MAX_STEPS = 200

Audio = str | Path | np.ndarray
"""A file, or samples [S] or [S, channels] at 24 kHz."""
RolePrompt = str | Sequence[int] | None
"""A preset's name, a text, token ids that already include the tags, or None for no role."""


def compiled_by_default() -> bool:
    """Whether a step's graph is fused unless somebody says otherwise: on a Mac, and with kernels on an NVIDIA card."""
    # With CUDA's stock operations a compiled step is a fifth faster, but takes minutes to build the first time. On
    # a CPU they take up to one, for a quarter of a small model's frame; what pays at once is fused anyway.
    return bool(mx.metal.is_available()) or enabled()


class OpeningOptions(TypedDict, total=False):
    """How a conversation starts.

    `voice`: a name, a `.pt`, `.safetensors` or audio file, a Voice, or None; default NATM0, or the first.
    `prompt`: a preset's name, a role text, token ids, or None for none; default "assistant". Moshi takes neither.
    `sampling`: default the checkpoint's own (`PersonaPlex.sampling` changes parts of it).
    `seed`: the same seed gives the same answer; default a fresh one, which the Reply names.
    `state`: go on from an earlier reply, whose voice and role then stay.
    """

    voice: str | Path | Voice | None
    prompt: RolePrompt
    sampling: Sampling | None
    seed: int | None
    state: Reply | TalkState | None


class ResponseOptions(OpeningOptions, total=False):
    """How long a reply lasts and in which pieces it comes.

    `max_steps` frames, or `max_seconds`, after the user's end (default 200 frames, 16 s); `stop_on_silence` ends it
    earlier once the agent has fallen silent (default True); `chunk_frames` per chunk (default 25);
    `on_frame(done, most)` is called after each frame.
    """

    max_steps: int | None
    max_seconds: float | None
    stop_on_silence: bool
    chunk_frames: int
    on_frame: Callable[[int, int], None] | None


@dataclass
class _Opening:
    """How a conversation starts."""

    talk: Talk
    sampling: Sampling
    seed: int
    prefill_ms: float
    prompt_frames: int


class PersonaPlex:
    """A loaded model. One thread may load it and another use it, but not two at once.

    >>> model = PersonaPlex.from_pretrained("nvidia/personaplex-7b-v1")
    >>> reply = model.respond("question.wav", voice="NATF2", prompt="teacher", seed=7)
    >>> reply.save("answer.wav"); print(reply.text)
    """

    def __init__(
        self,
        folder: ModelFolder,
        lm: LanguageModel,
        mimi: Mimi,
        tokenizer: Tokenizer,
        *,
        compiled: bool,
        kv_bits: int = 16,
    ) -> None:
        self.folder = folder
        self.config = folder.config
        self.lm = lm
        self.mimi = mimi
        self.tokenizer = tokenizer
        self.compiled = compiled
        self.generator = Generator(lm, folder.config, kv_bits=kv_bits)
        self._machines: dict[Ceiling, Duplex] = {}
        # What MLX has not computed yet can be computed only by the thread that asked for it.
        mx.eval(lm, mimi)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        dtype: mx.Dtype | None = None,
        depformer_steps: int = 8,
        compiled: bool | None = None,
        context_seconds: float | None = None,
        kv_bits: int = 16,
    ) -> PersonaPlex:
        """Load "nano", which is in this package, a folder in the reference's layout, or a Hub repository `owner/name`.

        `dtype` defaults to bfloat16 on a GPU and float32 on a CPU; `depformer_steps` 16 also predicts the user's codes,
        which changes nothing said; `compiled` fuses the step's graph and defaults to True on a Mac, and with kernels on
        an NVIDIA card; `context_seconds` makes the window shorter than the model's own, for less memory; `kv_bits` 8
        keeps keys and values in half of it.
        Raises CheckpointError or ConfigError naming what is missing, unknown or damaged.
        """
        check_kv_bits(kv_bits)
        folder = ModelFolder(resolve(path_or_repo), context_seconds)
        tokenizer, mimi = folder.load_tokenizer(), folder.load_mimi()
        lm = folder.load_lm(depformer_steps, dtype)
        if compiled is None:
            compiled = compiled_by_default()
        return cls(folder, lm, mimi, tokenizer, compiled=compiled, kv_bits=kv_bits)

    def list_voices(self) -> list[str]:
        """Names of the voices that came with the model."""
        return self.folder.voices.names()

    @property
    def default_voice(self) -> str | None:
        """NATM0, or the first voice of a model that has no NATM0; None for one that takes no voice."""
        if not self.config.prompts:
            return None
        names = self.list_voices()
        return names[0] if names and DEFAULT_VOICE not in names else DEFAULT_VOICE

    @property
    def default_prompt(self) -> str | None:
        """The role that is taken where none is named; None for a model that takes no role."""
        return DEFAULT_PROMPT if self.config.prompts else None

    @staticmethod
    def list_prompts() -> dict[str, str]:
        """Role prompts by name."""
        return dict(PROMPTS)

    def sampling(self, **changes: float | int | bool | None) -> Sampling:
        """The checkpoint's own sampling with some fields of `Sampling` changed (None: not changed)."""
        if unknown := sorted(set(changes) - set(Sampling.__dataclass_fields__)):
            raise UsageError(f"unknown sampling {unknown[0]!r}; known are {', '.join(Sampling.__dataclass_fields__)}")
        own = self.config.sampling
        values: dict[str, float | int | bool] = {
            "text_temperature": own.text_temp,
            "text_top_k": own.text_top_k,
            "audio_temperature": own.audio_temp,
            "audio_top_k": own.audio_top_k,
        }
        values |= {name: value for name, value in changes.items() if value is not None}
        return Sampling(**values)  # type: ignore[arg-type]

    def load_voice(self, voice: str | Path) -> Voice:
        """A voice by name, or from a `.pt`, `.safetensors` or audio file (normalised to -24 LUFS, at most 30 s).

        Raises PersonaError, CheckpointError or AudioError.
        """
        path = Path(voice)
        if _is_name(voice):
            return self.folder.voices.load(str(voice))
        if path.suffix in SUFFIXES:
            return voice_from_file(path, self.folder.codec_fingerprint)
        return Voice(path.stem, codes=np.array(self.mimi.encode(mx.array(self.read_clip(path))[None])[0]).T)

    @staticmethod
    def is_clip(voice: str | Path) -> bool:
        """Whether it is the name of a recording, which `read_clip` reads."""
        return not _is_name(voice) and Path(voice).suffix not in SUFFIXES

    @staticmethod
    def read_clip(path: Path) -> np.ndarray:
        """A recording that is to be a voice: samples [S] at 24 kHz, brought to -24 LUFS."""
        if not path.exists():
            raise PersonaError(f"voice {path} does not exist")
        pcm = read_audio(path)
        if len(pcm) > LONGEST_VOICE_SECONDS * SAMPLE_RATE:
            raise AudioError(
                f"voice {path} is {len(pcm) / SAMPLE_RATE:.1f} s long; at most {LONGEST_VOICE_SECONDS:.0f} s is used, "
                "and 4 to 6 s is best"
            )
        return normalise_loudness(pcm, str(path))

    def compose(self, voice: str | Path | Voice | None, prompt: RolePrompt) -> Prompt:
        """Voice and role laid out as forced frames. With neither (None, None) the model starts unprompted.

        Raises PersonaError for a voice or role that does not exist, and for any on a model that takes none (Moshi).
        """
        if not self.config.prompts and not (voice is None and prompt is None):
            raise PersonaError(NO_PROMPTS)
        if isinstance(voice, str | Path):
            voice = self.load_voice(voice)
        if isinstance(prompt, str):
            prompt = self.tokenizer.role_tokens(role_text(prompt))
        return compose(self.config, voice, None if prompt is None else [int(token) for token in prompt])

    def respond(self, audio: Audio, **options: Unpack[ResponseOptions]) -> Reply:
        """Listen to a recording and answer it, all at once.

        The agent hears the recording and then silence, and speaks whenever it likes.
        Raises AudioError, PersonaError, CheckpointError or UsageError.
        """
        return self.respond_stream(audio, **options).reply

    def respond_stream(self, audio: Audio, **options: Unpack[ResponseOptions]) -> ReplyStream:
        """Listen to a recording and answer it chunk by chunk, while it is made.

        Raises what `respond` raises, before the first chunk.
        """
        chunk_frames = options.get("chunk_frames", 25)
        if chunk_frames < 1:
            raise UsageError(f"chunk frames is {chunk_frames}; it must be at least 1")
        limit = _limit(options.get("max_steps"), options.get("max_seconds"))
        user = _samples(audio)
        opening = self._open(options)
        return ReplyStream(
            opening.talk,
            user,
            StopRule(limit, options.get("stop_on_silence", True)),
            padding=(EPAD, self.config.lm.existing_text_padding_id),
            chunk_frames=chunk_frames,
            sampling=opening.sampling,
            seed=opening.seed,
            prefill_ms=opening.prefill_ms,
            prompt_frames=opening.prompt_frames,
            on_frame=options.get("on_frame"),
        )

    def respond_realtime(self, frames: Iterable[np.ndarray], **options: Unpack[OpeningOptions]) -> Iterator[AgentFrame]:
        """Microphone samples in (24 kHz mono, any chunking), one AgentFrame out per 1920 samples, in lock step.

        Ends when `frames` does; a last partial frame is padded with silence. Raises AudioError for samples that are
        not [S] of finite floats or int16.
        """
        return _lock_step(self._open(options).talk, frames)

    def diagnose(
        self, audio: Audio, *, max_steps: int = 0, top: int = 5, **options: Unpack[OpeningOptions]
    ) -> list[StepDiagnosis]:
        """Step through a recording (and `max_steps` frames of silence) and tell what each step saw and preferred."""
        talk = self._open(options).talk
        steps = []
        for frame in _lock_step(talk, [_samples(audio), np.zeros(max_steps * FRAME_SAMPLES, np.float32)]):
            assert talk.last_step is not None
            steps.append(diagnose_step(frame.index, talk.last_step, self.tokenizer, top))
        return steps

    def warm_up(self) -> float:
        """Run two frames and forget them, so that kernels are compiled before anybody waits; returns the seconds."""
        began = time.perf_counter()
        talk = self._open({"voice": None, "prompt": None, "seed": 0}).talk
        for _ in range(2):
            talk.hear(np.zeros(FRAME_SAMPLES, np.float32))
        return time.perf_counter() - began

    def _open(self, options: OpeningOptions) -> _Opening:
        began = time.perf_counter()
        if unknown := set(options) - set(ResponseOptions.__annotations__):
            raise UsageError(f"unknown option {sorted(unknown)[0]!r}")
        seed, sampling, earlier = options.get("seed"), options.get("sampling"), options.get("state")
        if seed is None:
            seed = secrets.randbits(32)
        check_seed(seed)
        if earlier is None:
            sampling = sampling or self.sampling()
            voice = options.get("voice", self.default_voice)
            prompt = self.compose(voice, options.get("prompt", self.default_prompt))
            duplex = self._machine(sampling)
            state, prompt_frames = duplex.open(prompt, seed=seed, sampling=sampling), prompt.n_frames
        else:
            if "voice" in options or "prompt" in options:
                raise UsageError("a conversation that goes on keeps its voice and prompt; leave them out with `state`")
            earlier = earlier.state if isinstance(earlier, Reply) else earlier
            sampling = sampling or earlier.sampling
            duplex = self._machine(sampling)
            state, prompt_frames = duplex.resume(earlier.duplex, seed=seed, sampling=sampling), 0
        talk = Talk(duplex, state, self.tokenizer)
        return _Opening(talk, sampling, seed, 1000 * (time.perf_counter() - began), prompt_frames)

    def _machine(self, sampling: Sampling) -> Duplex:
        ceiling = Ceiling.over(sampling)
        if ceiling not in self._machines:
            self._machines[ceiling] = Duplex(self.mimi, self.generator, ceiling, compiled=self.compiled)
        return self._machines[ceiling]


def _is_name(voice: str | Path) -> bool:
    path = Path(voice)
    return "/" not in str(voice) and not path.is_file() and path.suffix in ("", *SUFFIXES)


def _samples(audio: Audio) -> np.ndarray:
    if isinstance(audio, np.ndarray):
        return as_mono(audio)
    if not isinstance(audio, str | Path):
        raise AudioError(f"expected a file's name or samples in a numpy array, found {type(audio).__name__}")
    return read_audio(audio)


def _limit(max_steps: int | None, max_seconds: float | None) -> int:
    if max_steps is not None and max_seconds is not None:
        raise UsageError("give max steps or max seconds, not both")
    steps = DEFAULT_MAX_STEPS if max_steps is None and max_seconds is None else max_steps
    if steps is None:
        assert max_seconds is not None
        if not 0 <= max_seconds < 1e9:
            raise UsageError(f"max seconds is {max_seconds}; it must be 0 or more")
        steps = round(max_seconds * FRAME_RATE)
    if steps < 0:
        raise UsageError(f"max steps is {steps}; it must be 0 or more")
    return steps


def _lock_step(talk: Talk, chunks: Iterable[np.ndarray]) -> Iterator[AgentFrame]:
    framer = Framer()
    for chunk in chunks:
        for frame in framer.push(as_chunk(chunk)):
            yield talk.hear(frame)
    for frame in framer.flush():
        yield talk.hear(frame)

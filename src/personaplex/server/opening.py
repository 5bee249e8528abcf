"""From a model's name to the backends of a server: what `serve` loads, in a thread of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.cascade.registry import open_synthesiser
from personaplex.cascade.session import chosen
from personaplex.conversation import Settings
from personaplex.errors import PersonaPlexError
from personaplex.persona import Parts, Persona
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.server.log import tell
from personaplex.server.service import Backends, Mode
from personaplex.units import FRAME_SAMPLES


@dataclass(frozen=True)
class DuplexPlan:
    """The full-duplex model that is to be served. `voices` adds the user's own to the model's."""

    model: str
    slots: int
    limits: Limits
    voices: Callable[[Sequence[str]], list[str]] = list
    find_voice: Callable[[str], str] = str


@dataclass(frozen=True)
class CascadePlan:
    """The cascade that is to be served; `persona` is the one whose synthesiser's voices are listed."""

    slots: int
    parts: Parts
    personas: Mapping[str, Persona]
    persona: str
    manner: Manner


def open_backends(duplex: DuplexPlan | None, cascade: CascadePlan | None) -> Backends:
    """Load what is asked for. Raises what loading raises; nothing is left open then."""
    slots: dict[Mode, int] = {}
    with ExitStack() as opened:
        engine = talk = None
        spoken: list[str] = []
        if duplex is not None:
            engine = opened.enter_context(Engine(duplex.model, duplex.slots, limits=duplex.limits))
            slots["duplex"] = engine.slots
            _warm_up(engine)
        if cascade is not None:
            talk = opened.enter_context(
                Cascade(cascade.slots, parts=cascade.parts, personas=cascade.personas, manner=cascade.manner)
            )
            slots["cascade"] = talk.slots
            spoken = _voices(cascade)
        close = opened.pop_all().close
    parts = Parts() if cascade is None else cascade.parts
    if duplex is None or engine is None:
        return Backends("cascade", None, talk, slots, cascade_voices=lambda: spoken, parts=parts, close=close)
    model, takes_prompts = engine.model, engine.model.config.prompts
    return Backends(
        duplex.model,
        engine,
        talk,
        slots,
        voices=lambda: duplex.voices(model.list_voices()) if takes_prompts else [],
        cascade_voices=lambda: spoken,
        find_voice=duplex.find_voice,
        takes_prompts=takes_prompts,
        role_tokens=lambda text: len(model.tokenizer.role_tokens(text)),
        context_frames=model.config.lm.context,
        sampling=dataclasses.asdict(model.sampling()),
        parts=parts,
        watch=engine.watch,
        unheard=lambda: engine.unheard,
        close=close,
    )


def _warm_up(engine: Engine) -> None:
    """Read the default prompt and step once, so that the first caller waits for neither kernels nor prompts."""
    try:
        with engine.open(Settings(seed=0)) as call:
            call.feed(np.zeros(FRAME_SAMPLES, np.float32))
            call.finish()
            for _ in call.events():
                pass
    except PersonaPlexError as error:
        tell("the default voice or role cannot be used", reason=error)


def _voices(cascade: CascadePlan) -> list[str]:
    """Of the default persona's synthesiser; none where that cannot be made now, which its first caller is told."""
    choice = chosen(cascade.personas[cascade.persona], cascade.parts).synthesiser or ""
    try:
        with closing(open_synthesiser(choice)) as synthesiser:
            return list(synthesiser.voices)
    except PersonaPlexError as error:
        tell("the synthesiser cannot be used", reason=error)
        return []

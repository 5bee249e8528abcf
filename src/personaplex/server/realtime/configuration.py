"""What a session is told to be: one frozen value, changed by `session.update`, shown by `session.created`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from personaplex.by_turns import Directions, Tool, TurnTaking
from personaplex.errors import UsageError
from personaplex.server.realtime.formats import PCM16, Format, read_format
from personaplex.server.realtime.wire import Answering, FormatObject, Refused, SessionObject, ToolChoice, TurnDetection

OPENAI_VOICES = frozenset("alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split())
"""Clients ask for these without a thought; here they stand for the persona's own voice."""

DEFAULT_VOICE = "default"

Modality = Literal["audio", "text"]
_EAGERNESS = {"low": 1200, "medium": 800, "auto": 800, "high": 400}
"""Milliseconds of silence that end a turn for `semantic_vad`, which is what these words come to here."""

VOICE = TurnDetection(type="server_vad", create_response=True, interrupt_response=True)


@dataclass(frozen=True)
class Configuration:
    """None is what the persona, or the backend, has of its own. `turns` None: turns are told by hand (`commit`)."""

    persona: str | None = None
    instructions: str | None = None
    voice: str | None = None
    modality: Modality = "audio"
    input: Format = PCM16
    output: Format = PCM16
    transcribes: bool = True
    turns: TurnDetection | None = VOICE
    directions: Directions = Directions()  # noqa: RUF009 - frozen
    seed: int | None = None
    recording: bool = False
    sampling: Mapping[str, float | int | bool] = field(default_factory=dict)

    def changed(self, asked: SessionObject) -> Configuration:
        """As `session.update` wants it. Raises Refused for what cannot be."""
        given = asked.model_fields_set
        chosen: dict[str, Any] = {n: getattr(asked, n) for n in ("persona", "instructions", "seed") if n in given}
        if asked.recording is not None:
            chosen["recording"] = asked.recording
        if "sampling" in given:
            chosen["sampling"] = asked.sampling or {}
        for name, beta in (("input", "input_audio_format"), ("output", "output_audio_format")):
            if getattr(asked, beta) is not None:
                chosen[name] = _format(FormatObject(type=getattr(asked, beta)), f"session.{beta}")
        modality = modality_of(asked) or self.modality
        new = replace(self, **chosen, modality=modality, directions=directed(self.directions, asked))
        if "persona" in given and "instructions" not in given:
            new = replace(new, instructions=None)
        if "voice" in given:
            new = replace(new, voice=_voice(asked.voice))
        if "turn_detection" in given:
            new = replace(new, turns=asked.turn_detection)
        if "input_audio_transcription" in given:
            new = replace(new, transcribes=asked.input_audio_transcription is not None)
        return new if asked.audio is None else _with_audio(new, asked)

    def turn_taking(self) -> TurnTaking:
        """The same for the conversation."""
        if self.turns is None:
            return TurnTaking(by="hand", answers=False)
        silence = self.turns.silence_duration_ms
        if self.turns.type == "semantic_vad":
            silence = _EAGERNESS[self.turns.eagerness] if self.turns.eagerness else silence
        return TurnTaking(
            answers=self.turns.create_response is not False,
            interrupts=self.turns.interrupt_response is not False,
            onset=self.turns.threshold,
            silence_seconds=None if silence is None else silence / 1000,
        )


def _with_audio(before: Configuration, asked: SessionObject) -> Configuration:
    new = before
    assert asked.audio is not None
    if (heard := asked.audio.input) is not None:
        if heard.format is not None:
            new = replace(new, input=_format(heard.format, "session.audio.input.format"))
        if "transcription" in heard.model_fields_set:
            new = replace(new, transcribes=heard.transcription is not None)
        if "turn_detection" in heard.model_fields_set:
            new = replace(new, turns=heard.turn_detection)
    if (spoken := asked.audio.output) is not None:
        if spoken.format is not None:
            new = replace(new, output=_format(spoken.format, "session.audio.output.format"))
        if "voice" in spoken.model_fields_set:
            new = replace(new, voice=_voice(spoken.voice))
    return new


def modality_of(asked: Answering) -> Modality | None:
    """Text alone, or sound with its text, in whichever spelling; None where nothing is said."""
    wanted = asked.modalities if asked.output_modalities is None else asked.output_modalities
    if wanted is None:
        return None
    if not wanted:
        raise Refused("invalid_value", "output_modalities is empty; expected audio or text", param="output_modalities")
    return "audio" if "audio" in wanted else "text"


def directed(before: Directions, asked: Answering) -> Directions:
    """How answers are made, as `asked`. Raises Refused for tools that are no functions."""
    new, given = before, asked.model_fields_set
    if "tools" in given:
        tools = asked.tools or []
        for at, tool in enumerate(tools):
            if tool.type != "function" or tool.name is None:
                raise Refused(
                    "invalid_value",
                    f"tools.{at} is of type {tool.type[:40]!r}; only functions with a name can be called here",
                    param=f"tools.{at}",
                )
        new = replace(new, tools=tuple(Tool(t.name or "", t.description or "", t.parameters or {}) for t in tools))
    if asked.tool_choice is not None:
        choice = asked.tool_choice
        new = replace(new, choice=choice.name if isinstance(choice, ToolChoice) else choice)
    if "temperature" in given:
        new = replace(new, temperature=asked.temperature)
    for name in ("max_output_tokens", "max_response_output_tokens"):
        if name in given:
            most = getattr(asked, name)
            new = replace(new, max_tokens=most if isinstance(most, int) else None)
    return new


def _voice(asked: str | Mapping[str, Any] | None) -> str | None:
    """The name of a voice; OpenAI's own names, and none, are the persona's."""
    if isinstance(asked, Mapping):
        asked = str(asked.get("id") or "")
    return None if asked is None or asked.lower() in OPENAI_VOICES | {DEFAULT_VOICE} else asked


def _format(asked: FormatObject, param: str) -> Format:
    try:
        return read_format(asked.type, asked.rate)
    except UsageError as error:
        raise Refused("invalid_value", str(error), param=param) from None


def shown(now: Configuration, *, by_turns: bool, transcribes: bool) -> dict[str, Any]:
    """The `session` object, as far as it is the client's choice; in the present spelling."""
    turns: dict[str, Any] | None = None
    if by_turns and now.turns is not None:
        default = now.turn_taking()
        turns = now.turns.model_dump(exclude_none=True) | {
            "create_response": default.answers,
            "interrupt_response": default.interrupts,
        }
    transcription = {"model": "server"} if now.transcribes and transcribes else None
    choice = now.directions.choice
    return {
        "type": "realtime",
        "object": "realtime.session",
        "persona": now.persona,
        "instructions": now.instructions or "",
        "output_modalities": [now.modality],
        "audio": {
            "input": {
                "format": now.input.ga,
                "transcription": transcription,
                "noise_reduction": None,
                "turn_detection": turns,
            },
            "output": {"format": now.output.ga, "voice": now.voice or DEFAULT_VOICE, "speed": 1.0},
        },
        "tools": [
            {"type": "function", "name": t.name, "description": t.description, "parameters": dict(t.parameters)}
            for t in now.directions.tools
        ],
        "tool_choice": choice if choice in ("auto", "none", "required") else {"type": "function", "name": choice},
        "temperature": now.directions.temperature,
        "max_output_tokens": now.directions.max_tokens or "inf",
        "truncation": "auto",
        "tracing": None,
        "recording": now.recording,
        "seed": now.seed,
        "sampling": dict(now.sampling),
    }

"""Messages of a client, read and checked: JSON in, one of these models out, or a `Refused` that says what is wrong.

Fields that are not known here are ignored, as clients of many versions send them; what is known is checked.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MOST_TEXT = 100_000
"""Characters of instructions, of a text, or of a tool's output."""

_Id: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]
_Text: TypeAlias = Annotated[str, Field(max_length=MOST_TEXT)]
_Name: TypeAlias = Annotated[str, Field(max_length=200)]
_Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_Milliseconds: TypeAlias = Annotated[int, Field(ge=0, le=3_600_000)]
_Temperature: TypeAlias = Annotated[float, Field(ge=0, le=2)]
_Tokens: TypeAlias = Annotated[int, Field(ge=1, le=100_000)] | Literal["inf"]


class Refused(Exception):  # noqa: N818 - an answer more than a mistake
    """A message that cannot be done: what `error` events say of it."""

    def __init__(
        self, code: str, message: str, *, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.kind, self.code, self.message, self.param = kind, code, message, param
        self.event_id: str | None = None


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class FormatObject(_Model):
    """`{"type": "audio/pcm", "rate": 24000}`."""

    type: _Name
    rate: int | None = None


class TurnDetection(_Model):
    """Who tells turns, and what follows."""

    type: Literal["server_vad", "semantic_vad"]
    threshold: _Probability | None = None
    prefix_padding_ms: _Milliseconds | None = None
    silence_duration_ms: _Milliseconds | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class Transcription(_Model):
    """That the user's words are wanted; which model writes them is the server's choice."""

    model: _Name | None = None
    language: _Name | None = None
    prompt: _Text | None = None


class AudioInput(_Model):
    """The user's sound."""

    format: FormatObject | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class AudioOutput(_Model):
    """The agent's."""

    format: FormatObject | None = None
    voice: _Name | dict[str, Any] | None = None


class Audio(_Model):
    """Both."""

    input: AudioInput | None = None
    output: AudioOutput | None = None


class ToolObject(_Model):
    """A function; other kinds of tools are refused by their type."""

    type: _Name = "function"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")] | None = None
    description: _Text | None = None
    parameters: dict[str, Any] | None = None


class ToolChoice(_Model):
    """A function that is to be called."""

    type: Literal["function"]
    name: _Name


class Answering(_Model):
    """What a session and a single response have in common, in both spellings."""

    instructions: _Text | None = None
    output_modalities: list[Literal["audio", "text"]] | None = None
    modalities: list[Literal["audio", "text"]] | None = None
    tools: Annotated[list[ToolObject], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    temperature: _Temperature | None = None
    max_output_tokens: _Tokens | None = None
    max_response_output_tokens: _Tokens | None = None


class SessionObject(Answering):
    """A session as clients want it: the present spelling, the beta's flat one, and ours."""

    type: _Name | None = None
    audio: Audio | None = None
    voice: _Name | dict[str, Any] | None = None
    input_audio_format: _Name | None = None
    output_audio_format: _Name | None = None
    input_audio_transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    persona: _Name | None = None
    recording: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    sampling: Annotated[dict[str, bool | int | float], Field(max_length=32)] | None = None


class ContentPart(_Model):
    """A piece of an item."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text", "audio", "input_image"]
    text: _Text | None = None
    transcript: _Text | None = None
    audio: str | None = None


class ItemObject(_Model):
    """An item as a client makes it."""

    id: _Id | None = None
    type: Literal["message", "function_call", "function_call_output"]
    role: Literal["user", "assistant", "system"] | None = None
    content: Annotated[list[ContentPart], Field(max_length=64)] | None = None
    name: _Name | None = None
    call_id: _Id | None = None
    arguments: _Text | None = None
    output: _Text | None = None


class ResponseObject(Answering):
    """How one response is to be."""

    conversation: _Name | None = None
    input: list[Any] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


class _Event(_Model):
    event_id: Annotated[str, Field(max_length=512)] | None = None


class SessionUpdate(_Event):  # noqa: D101
    type: Literal["session.update"]
    session: SessionObject


class SessionStart(_Event):  # noqa: D101
    type: Literal["session.start"]


class SessionClose(_Event):  # noqa: D101
    type: Literal["session.close"]


class SessionResume(_Event):  # noqa: D101
    type: Literal["session.resume"]
    resume_token: _Id
    server_event_seq: Annotated[int, Field(ge=0)] | None = None
    last_received_server_event_seq: Annotated[int, Field(ge=0)] | None = None


class Heartbeat(_Event):  # noqa: D101
    type: Literal["session.heartbeat"]


class EventAck(_Event):  # noqa: D101
    type: Literal["session.event_ack"]
    server_event_seq: Annotated[int, Field(ge=0)]


class Append(_Event):  # noqa: D101
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):  # noqa: D101
    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):  # noqa: D101
    type: Literal["input_audio_buffer.clear"]


class OutputClear(_Event):  # noqa: D101
    type: Literal["output_audio_buffer.clear"]


class ItemCreate(_Event):  # noqa: D101
    type: Literal["conversation.item.create"]
    item: ItemObject
    previous_item_id: _Id | None = None


class ItemRetrieve(_Event):  # noqa: D101
    type: Literal["conversation.item.retrieve"]
    item_id: _Id


class ItemDelete(_Event):  # noqa: D101
    type: Literal["conversation.item.delete"]
    item_id: _Id


class ItemTruncate(_Event):  # noqa: D101
    type: Literal["conversation.item.truncate"]
    item_id: _Id
    content_index: Annotated[int, Field(ge=0)] = 0
    audio_end_ms: Annotated[int, Field(ge=0)]


class ResponseCreate(_Event):  # noqa: D101
    type: Literal["response.create"]
    response: ResponseObject | None = None


class ResponseCancel(_Event):  # noqa: D101
    type: Literal["response.cancel"]
    response_id: _Id | None = None


class PlaybackAck(_Event):  # noqa: D101
    type: Literal["playback.ack"]
    played_ms: Annotated[int, Field(ge=0)]
    response_id: _Id | None = None
    item_id: _Id | None = None


ClientEvent: TypeAlias = (
    SessionUpdate | SessionStart | SessionClose | SessionResume | Heartbeat | EventAck | Append | Commit | Clear
    | OutputClear | ItemCreate | ItemRetrieve | ItemDelete | ItemTruncate | ResponseCreate | ResponseCancel
    | PlaybackAck
)  # fmt: skip

_EVENTS: TypeAdapter[ClientEvent] = TypeAdapter(Annotated[ClientEvent, Field(discriminator="type")])


def read(text: str) -> ClientEvent:
    """One message. Raises Refused for what is no JSON, of a type that is unknown, or wrong in a field."""
    try:
        return _EVENTS.validate_json(text)
    except ValidationError as error:
        refused = _refused(error)
        refused.event_id = _event_id(text)
        raise refused from None


def _refused(error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False)[0]
    kind, where = first["type"], ".".join(str(part) for part in first["loc"][1:])[:200]
    why = str(first["msg"])[:300]
    if kind == "json_invalid":
        return Refused("invalid_json", f"the message is no JSON: {why}")
    if kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type", "dict_type") and not where:
        known = sorted(_EVENT_TYPES)
        given = first["input"].get("type") if isinstance(first["input"], dict) else first["input"]
        named = f"{str(given)[:80]!r} is no event of a client" if given is not None else "the message has no type"
        return Refused("unknown_event", f"{named}; there are {', '.join(known)}", param="type")
    if kind == "missing":
        return Refused("missing_required_parameter", f"{where} is missing", param=where)
    return Refused("invalid_value", f"{where}: {why}", param=where)


def _event_id(text: str) -> str | None:
    """What the client called a message that it got wrong, so that it knows which."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = found.get("event_id") if isinstance(found, dict) else None
    return name[:512] if isinstance(name, str) else None


_EVENT_TYPES = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(ClientEvent)}

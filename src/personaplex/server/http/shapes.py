"""The JSON of requests and responses, bounded: what is longer, not finite or of another type is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

MOST_CHARACTERS = 20_000
"""Of a message, or of a text that is to be read aloud: half an hour of speech."""


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("there is nothing in it")
    return text


Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS), AfterValidator(_said)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
MESSAGE = AliasChoices("message", "text", "content", "prompt")
"""What clients call what somebody says."""


class ErrorAbout(BaseModel):
    """What went wrong; `code` is for programs, `message` for people."""

    type: str
    code: str
    message: str
    param: str | None = None


class ErrorBody(BaseModel):
    """Every error, in OpenAI's shape."""

    error: ErrorAbout


class Request(BaseModel):
    """Fields that it does not know are left alone: programs of others send more than we need."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ChatRequest(Request):
    """Something said in text. Without a session nothing is remembered."""

    message: Text = Field(validation_alias=MESSAGE)
    persona: Name | None = None
    session_id: SessionId | None = None


class ChatResponse(BaseModel):
    """The whole answer. `kept`: it is in the history."""

    response: str
    persona: str
    model: str
    session_id: str | None
    latency_ms: float
    first_token_ms: float | None
    cancelled: bool
    kept: bool


class SpeakRequest(Request):
    """A text to say, in a persona's voice or one of the synthesiser's."""

    text: Text = Field(validation_alias=AliasChoices("text", "message", "content", "input"))
    persona: Name | None = None
    voice: Name | None = None


class SessionRequest(Request):
    """A new conversation."""

    persona: Name | None = None
    title: Name | None = None


class SessionResponse(BaseModel):
    """A conversation to come back to."""

    session_id: str
    persona: str
    title: str | None
    created: float


class PersonaAbout(BaseModel):
    """Who the agent can be. `voice` and `model` are the cascade's; `voices` those that the duplex model should have."""

    name: str
    prompt: str
    voice: str | None
    voices: list[str]
    model: str
    temperature: float | None
    max_tokens: int | None


class PersonasResponse(BaseModel):
    """All personas, and who answers where none is named."""

    personas: list[PersonaAbout]
    default: str


class VoiceId(BaseModel):
    """A voice as some of OpenAI's clients name it."""

    id: Name


class SpeechRequest(BaseModel):
    """OpenAI's request for speech. `instructions` is taken and does nothing: no synthesiser here follows any."""

    model: Name = "tts-1"
    input: Annotated[str, Field(max_length=MOST_CHARACTERS), AfterValidator(_said)]
    voice: Annotated[str, Field(max_length=200)] | VoiceId | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0, allow_inf_nan=False)
    instructions: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    stream_format: Literal["audio", "sse"] = "audio"
    language: Annotated[str, Field(max_length=20)] | None = None


class ModelAbout(BaseModel):
    """Something that computes here. `kind` is ours: duplex, language-model, recogniser or synthesiser."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: str


class ModelsResponse(BaseModel):
    """OpenAI's list."""

    object: Literal["list"] = "list"
    data: list[ModelAbout]


class VoiceAbout(BaseModel):
    """A voice by name, and what speaks with it: `duplex`, or the synthesiser of the `cascade`."""

    id: str
    name: str
    mode: Literal["duplex", "cascade"]
    model: str


class VoicesResponse(BaseModel):
    """All voices; `default` names that of each mode, where it has one."""

    object: Literal["list"] = "list"
    data: list[VoiceAbout]
    voices: list[str]
    default: dict[str, str]


class SessionAbout(BaseModel):
    """A session of the history. Times are seconds since 1970, `recorded_seconds` is sound that can be fetched."""

    id: str
    kind: str
    persona: str | None
    title: str | None
    created: float
    updated: float
    turns: int
    recorded_seconds: float


class HistoryResponse(BaseModel):
    """Sessions, the latest first. `lasting`: they outlive the server."""

    object: Literal["list"] = "list"
    lasting: bool
    data: list[SessionAbout]


class TurnAbout(BaseModel):
    """What somebody said."""

    role: Literal["user", "assistant"]
    content: str
    persona: str | None
    at: float


class Transcribed(BaseModel):
    """A session, and what was said in it."""

    session: SessionAbout
    messages: list[TurnAbout]


class TitleRequest(Request):
    """A session's new title; null for none."""

    title: Name | None


class Deleted(BaseModel):
    """How many sessions were deleted."""

    deleted: int


class RespondResponse(BaseModel):
    """An answer to a recording; `audio` is a WAV file in base64."""

    text: str
    heard: str | None
    mode: str
    persona: str
    voice: str | None
    seed: int | None
    stopped: str
    input_seconds: float
    output_seconds: float
    session_id: str | None
    audio: str


REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "Something in it cannot be used; `error.param` names it where that is known.",
        401: "The token is missing or wrong.",
        403: "The page that calls may not.",
        408: "The request did not come to its end.",
        413: "More than is taken at once.",
        429: "All slots are taken.",
        502: "A recogniser, language model or voice failed.",
        503: "The server is loading, or about to stop.",
    }.items()
}
"""What any route may answer instead."""

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody, "description": "There is none of that name."}}
IN_USE: dict[int | str, dict[str, Any]] = {409: {"model": ErrorBody, "description": "Its last answer is still coming."}}

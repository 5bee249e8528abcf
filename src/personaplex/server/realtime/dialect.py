"""The protocol's two wordings. Events are made in the present one (GA); clients of the beta are told in theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from personaplex.server.realtime.formats import read_format
from personaplex.server.realtime.wire import SessionObject

Dialect = Literal["ga", "beta"]

_RENAMED = (
    ("response.output_audio_transcript.", "response.audio_transcript."),
    ("response.output_audio.", "response.audio."),
    ("response.output_text.", "response.text."),
)
_PARTS = {"output_audio": "audio", "output_text": "text"}
_FLAT = {
    "modalities",
    "voice",
    "input_audio_format",
    "output_audio_format",
    "input_audio_transcription",
    "turn_detection",
    "max_response_output_tokens",
}


def spoken_by(asked: SessionObject) -> Dialect | None:
    """What a `session.update` shows of its client; None where it could be either's."""
    if asked.type == "realtime" or asked.audio is not None or asked.output_modalities is not None:
        return "ga"
    return "beta" if _FLAT & asked.model_fields_set else None


def worded(event: Mapping[str, Any], dialect: Dialect) -> dict[str, Any] | None:
    """An event as a client understands it; None for one that the beta did not have."""
    told = dict(event)
    if dialect == "ga":
        return told
    kind: str = told["type"]
    if kind == "conversation.item.done":
        return None
    if kind == "conversation.item.added":
        kind = "conversation.item.created"
    for now, then in _RENAMED:
        if kind.startswith(now):
            kind = then + kind.removeprefix(now)
    told["type"] = kind
    if "item" in told:
        told["item"] = _item(told["item"])
    if "session" in told:
        told["session"] = _session(told["session"])
    if "response" in told:
        told["response"] = _response(told["response"])
    return told


def _item(item: Mapping[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return dict(item)
    return {**item, "content": [{**part, "type": _PARTS.get(part["type"], part["type"])} for part in item["content"]]}


def _modalities(wanted: list[str]) -> list[str]:
    return ["audio", "text"] if "audio" in wanted else ["text"]


def _format(form: Mapping[str, Any]) -> str:
    return read_format(form["type"], form.get("rate")).beta


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in session.items() if name not in ("type", "audio", "output_modalities")}
    heard, spoken = session["audio"]["input"], session["audio"]["output"]
    told["modalities"] = _modalities(session["output_modalities"])
    told["voice"] = spoken["voice"]
    told["input_audio_format"], told["output_audio_format"] = _format(heard["format"]), _format(spoken["format"])
    told["input_audio_transcription"] = heard["transcription"]
    told["turn_detection"] = heard["turn_detection"]
    told["max_response_output_tokens"] = told.pop("max_output_tokens")
    return told


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    told["modalities"] = _modalities(response["output_modalities"])
    told["voice"] = response["audio"]["output"]["voice"]
    told["output_audio_format"] = _format(response["audio"]["output"]["format"])
    told["output"] = [_item(item) for item in response["output"]]
    return told

"""A set of questions: what is asked of whom, and what must be in the answer.

Read from YAML in the form that docs/evaluation/prompts.md describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from personaplex.errors import PersonaError, UsageError
from personaplex.evaluate.prompts.document import Part, read_document
from personaplex.evaluate.prompts.expectation import Expectation, wordless
from personaplex.persona import Persona, read_personas
from personaplex.text import PROMPTS, role_text

BUILT_IN = {"basic": Path(__file__).parent / "basic.yaml"}
"""Sets that come with the package, by name. `nano` is another: see `heldout`."""

LISTEN_SECONDS = 12.0
MOST_SEEDS = 10_000

_DEFAULTS = ("persona", "prompt", "voice", "speaker", "speaker_voice", "waits", "listen")
_QUESTION = ("name", "say", "audio", "expect", "never", "no_other_number", "seeds", *_DEFAULTS)


@dataclass(frozen=True)
class Question:
    """One question. `say` is spoken by `speaker` (an engine, NAME[:MODEL]), or `audio` is a recording of it.

    `voice` and `prompt` None are the model's own; `voices` are others that a persona likes, the first that there is.
    `waits`: it comes once the agent has greeted and is quiet, else at once. The agent is listened to for at most
    `listen_seconds`. `seeds` are the question's own; `where` says where it stands.
    """

    name: str
    say: str = ""
    audio: Path | None = None
    expectation: Expectation = field(default_factory=Expectation)
    voice: str | None = None
    prompt: str | None = None
    voices: tuple[str, ...] = ()
    sampling: Mapping[str, float | int | bool] = field(default_factory=dict)
    speaker: str = "flite"
    speaker_voice: str | None = None
    waits: bool = True
    listen_seconds: float = LISTEN_SECONDS
    seeds: tuple[int, ...] = ()
    persona: str = ""
    where: str = ""

    def voice_of(self, known: Sequence[str]) -> str | None:
        """The voice on a model with the `known` ones."""
        return self.voice or next((voice for voice in self.voices if voice in known), None)


def without_roles(questions: Sequence[Question]) -> list[Question]:
    """The same for a model that takes neither voice nor role (Moshi): it talks as itself."""
    return [replace(question, voice=None, prompt=None, voices=()) for question in questions]


def read_questions(source: str | Path) -> list[Question]:
    """The questions of a built-in set, or of a YAML file. Raises UsageError naming the line of what is wrong."""
    path = BUILT_IN.get(str(source)) or Path(source)
    if not path.suffix and not path.exists():
        raise UsageError(f"unknown questions {str(source)!r}; there are nano, {', '.join(BUILT_IN)}, or a YAML file")
    top = read_document(path)
    parts = top.mapping("personas", "questions", "seeds", *_DEFAULTS)
    personas: dict[str, Persona] = read_personas()
    for name, part in (parts["personas"].mapping() if "personas" in parts else {}).items():
        personas[name] = _persona(name, part)
    if "questions" not in parts:
        top.fail("there are no questions; expected a list under the key `questions`")
    defaults = {key: part for key, part in parts.items() if key in (*_DEFAULTS, "seeds")}
    found = [_question(part, defaults, personas, path.parent) for part in parts["questions"].items()]
    if not found:
        parts["questions"].fail("the list of questions is empty")
    names = [question.name for question in found]
    for i, part in enumerate(parts["questions"].items()):
        if names[i] in names[:i]:
            part.fail(f"the name {names[i]!r} is taken by an earlier question; give it a `name` of its own")
    return found


def _persona(name: str, part: Part) -> Persona:
    fields = part.mapping("prompt", "voice")
    if "prompt" not in fields:
        part.fail("a persona needs a prompt, its role")
    voice = (fields["voice"].text(),) if "voice" in fields else ()
    return Persona(name, _role(fields["prompt"]), voice)


def _role(part: Part) -> str:
    text = part.text()
    try:
        return role_text(text)
    except PersonaError:
        part.fail(f"unknown prompt {text!r}; known are {', '.join(PROMPTS)}; a role text has several words")


def _question(part: Part, defaults: Mapping[str, Part], personas: Mapping[str, Persona], folder: Path) -> Question:
    own = part.mapping(*_QUESTION)
    both = {**defaults, **own}
    if ("say" in own) == ("audio" in own):
        part.fail("a question needs either `say`, a text, or `audio`, a recording's name")
    if "prompt" in own and "persona" in own:
        own["prompt"].fail("a question has a `prompt` or a `persona`, not both")
    if "prompt" in own:
        both.pop("persona", None)
    persona = personas[both["persona"].one_of(sorted(personas))] if "persona" in both else None
    if persona is not None:
        voice = own["voice"].text() if "voice" in own else None
        prompt: str | None = persona.prompt
    else:
        voice = both["voice"].text() if "voice" in both else None
        prompt = _role(both["prompt"]) if "prompt" in both else None
    if persona is not None and voice is None and not persona.voices and "voice" in defaults:
        voice = defaults["voice"].text()
    say = own["say"].text() if "say" in own else ""
    if say and wordless([say]):
        own["say"].fail(f"there is no word in {say!r}")
    audio = folder / own["audio"].text() if "audio" in own else None
    return Question(
        name=own["name"].text() if "name" in own else say or audio.name if audio else say,
        say=say,
        audio=audio,
        expectation=_expectation(part, own),
        voice=voice,
        prompt=prompt,
        voices=persona.voices if persona else (),
        sampling=persona.sampling if persona else {},
        speaker=both["speaker"].text() if "speaker" in both else "flite",
        speaker_voice=both["speaker_voice"].text() if "speaker_voice" in both else None,
        waits=both["waits"].truth() if "waits" in both else True,
        listen_seconds=both["listen"].seconds() if "listen" in both else LISTEN_SECONDS,
        seeds=_seeds(both["seeds"]) if "seeds" in both else (),
        persona=persona.name if persona else "",
        where=part.where,
    )


def _expectation(part: Part, own: Mapping[str, Part]) -> Expectation:
    wanted = _wanted(own["expect"]) if "expect" in own else ()
    never = _phrases(own["never"]) if "never" in own else ()
    if not wanted and not never:
        part.fail("a question needs `expect`, words of a right answer, or `never`, words of a wrong one")
    only = own["no_other_number"].truth() if "no_other_number" in own else False
    return Expectation(wanted, never, only)


def _wanted(part: Part) -> tuple[tuple[str, ...], ...]:
    """A phrase, or a list of which all are wanted; a list in it, or a mapping with `any`, holds alternatives."""
    found = []
    for entry in part.items() if part.is_list else [part]:
        if entry.is_mapping:
            choices = entry.mapping("any")
            if "any" not in choices:
                entry.fail("expected the key `any` with a list of phrases")
            entry = choices["any"]
        found.append(_phrases(entry))
    if not found:
        part.fail("nothing is expected; name a phrase at least")
    return tuple(found)


def _phrases(part: Part) -> tuple[str, ...]:
    parts = part.items() if part.is_list else [part]
    phrases = tuple(entry.text() for entry in parts)
    if not phrases:
        part.fail("expected a phrase at least")
    for entry, phrase in zip(parts, phrases, strict=True):
        if wordless([phrase]):
            entry.fail(f"there is no word in {phrase!r}")
    return phrases


def _seeds(part: Part) -> tuple[int, ...]:
    if not part.is_list:
        n = part.whole(1)
        if n > MOST_SEEDS:
            part.fail(f"{n} seeds are too many; at most {MOST_SEEDS}")
        return tuple(range(1, n + 1))
    seeds = tuple(entry.whole(0) for entry in part.items())
    if not seeds or len(set(seeds)) < len(seeds):
        part.fail("expected seeds, each once")
    return seeds

"""How well a model does what it is steered to: `python scripts/measure_steering.py text|role [--n N] [--seed S]`.

    text   `send_text` has the agent say sentences of its own world and of none; a recogniser hears them
    role   `update(keep_history=True)` gives it a second role in mid-call: does it answer from that one, does it still
           know what it was told before, and the same when the history is not kept

For the model in the package, whose world of questions and answers is known. Prints a table with 95 % intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np  # isort: skip

from personaplex.conversation import AgentText, Audio, Settings
from personaplex.dialogue import Facts, agent_line, grammar, is_right, role_prompt, sample_facts, user_line
from personaplex.evaluate.hearing import spoken_part
from personaplex.evaluate.nano.recogniser import hear_all, network, word_loop
from personaplex.evaluate.row import Row, as_markdown, share
from personaplex.evaluate.statistics import ErrorRate, words_of
from personaplex.runtime.call import Call
from personaplex.runtime.engine import Engine
from personaplex.speech import say, user_speaker
from personaplex.units import FRAME_SAMPLES

PROMPT, VOICE = "You are a helpful assistant.", "NATM1"
STRANGE = (
    "the river was cold in the morning",
    "my brother paints small wooden boats",
    "we walked home under a full moon",
    "nobody could explain the strange letter",
    "the train to the coast leaves early",
    "she keeps three old clocks in the kitchen",
    "a red umbrella lay on the bench",
    "the music stopped before the rain began",
)
"""Sentences that are no answer to anything here."""
LISTEN_FRAMES = 80


def hear(call: Call, events: Iterator[object], pcm: np.ndarray) -> tuple[str, np.ndarray]:
    """What the agent says, in text and in sound, while the user says `pcm` and is quiet for LISTEN_FRAMES."""
    pcm = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES + LISTEN_FRAMES * FRAME_SAMPLES))
    call.feed(pcm.astype(np.float32))
    text, sound, n_frames = [], [], len(pcm) // FRAME_SAMPLES
    for event in events:
        if isinstance(event, AgentText):
            text.append(event.text)
        elif isinstance(event, Audio):
            sound.append(event.pcm)
            n_frames -= 1
            if not n_frames:
                break
    return "".join(text).strip(), np.concatenate(sound)


def measure_text(engine: Engine, n: int, rng: np.random.Generator) -> list[Row]:
    """Sentences said aloud as they were given."""
    known = [agent_line(rng, intent, ()).text for intent in ("how_are_you", "weather", "robot", "thanks", "goodbye")]
    known += [agent_line(rng, "opens", (hour,)).text for hour in ("nine", "ten thirty", "six")]
    made = []
    for name, sentences, ears in (
        ("of its world", known, network(grammar())),
        ("of none", STRANGE, word_loop(sorted({word for line in STRANGE for word in line.split()}))),
    ):
        wanted, texts, sounds = [], [], []
        for i in range(n):
            sentence = sentences[i % len(sentences)]
            with engine.open(Settings(voice=VOICE, prompt=PROMPT, seed=i)) as call:
                events = iter(call.events())
                hear(call, events, np.zeros(0, np.float32))
                call.send_text(sentence)
                text, sound = hear(call, events, np.zeros(0, np.float32))
            wanted.append(words_of(sentence))
            texts.append(words_of(text))
            sounds.append(spoken_part(sound))
        heard = hear_all(sounds, ears, processes=0)
        rate = ErrorRate.over(list(zip(wanted, map(list, heard), strict=True)))
        exact = [text[: len(words)] == words for text, words in zip(texts, wanted, strict=True)]
        made += [
            share(f"sentences {name}: in its text as they were given", exact),
            Row(f"sentences {name}: word errors heard", rate.value, rate.interval, rate.n, at_most=True),
        ]
    return made


def measure_role(engine: Engine, n: int, rng: np.random.Generator) -> list[Row]:
    """A question to a second role, and one about what was told before it came."""
    made = []
    for kept in (True, False):
        new, old, told = [], [], []
        for i in range(n):
            first, second = (_role(rng) for _ in range(2))
            tells = user_line(rng, "train", "tell_name")
            asks, recalls = (user_line(rng, "train", intent, ()) for intent in ("opens", "recall_name"))
            speaker = user_speaker(rng)
            with engine.open(Settings(voice=VOICE, prompt=role_prompt(rng, first, "train"), seed=i)) as call:
                events = iter(call.events())
                hear(call, events, np.zeros(0, np.float32))
                hear(call, events, say(speaker, tells.text).pcm)
                call.update(prompt=role_prompt(rng, second, "train"), keep_history=kept)
                hear(call, events, np.zeros(0, np.float32))
                answer, _ = hear(call, events, say(speaker, asks.text).pcm)
                again, _ = hear(call, events, say(speaker, recalls.text).pcm)
            new.append(is_right(answer, "opens", (second.opens or "",)))
            old.append(is_right(answer, "opens", (first.opens or "",)))
            told.append(is_right(again, "recall_name", tells.key))
        how = "history kept" if kept else "history forgotten"
        made += [
            share(f"{how}: answers from the second role", new),
            share(f"{how}: answers from the first role", old),
            share(f"{how}: knows the name that it was told before", told),
        ]
    return made


def _role(rng: np.random.Generator) -> Facts:
    """A service role that opens at some hour."""
    while True:
        facts = sample_facts(rng, "train")
        if facts.opens:
            return facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["text", "role"])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--n", type=int, default=16, help="of each kind (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    measure = {"text": measure_text, "role": measure_role}[options.what]
    with Engine(options.model, slots=1) as engine:
        rows = measure(engine, options.n, np.random.default_rng(options.seed))
    sys.stdout.write(as_markdown(rows) + "\n")


if __name__ == "__main__":
    main()

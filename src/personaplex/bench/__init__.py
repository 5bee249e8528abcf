"""Benchmarks that users can run: `personaplex bench NAME`. One file a benchmark, one report format for all.

A benchmark is a module with a docstring that teaches the theory (what a frame costs at least), and `run`. Those of
speed, `SPEED`, take what is `Wanted` and say how near they come to what the machine can do (`roof.py`); the others take
(model: str | None, frames: int, compiled: bool | None), those of the cascade and the server more.
"""

PARTS = {
    "step": "One caller: the language model's step by context and precision, and a whole frame.",
    "codec": "Mimi: encoder, quantiser, decoder and round trip, one 80 ms frame at a time.",
    "prefill": "Voice and role: read in one pass, from memory, from disk.",
    "sessions": "Many callers on one device: a step of all of them, and how many fit.",
    "startup": "From the start of the program to its first sound, stage by stage.",
}
"""What `all` runs."""

SPEED = PARTS | {"all": "All of these, in modest sizes."}

BENCHES = SPEED | {
    "cascade": "Recogniser, language model and voice, each and together, with and without streaming by sentences.",
    "engine": "The live engine: step time by slots, and from open to ready: cold, from memory, from disk.",
    "load": "Loading a model, its memory, and the frames of a conversation with it.",
    "serve": "A server under callers over real sockets: ticks, missed deadlines, underruns, by number of callers.",
}

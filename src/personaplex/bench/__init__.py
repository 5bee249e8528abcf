"""Benchmarks that users can run: `personaplex bench NAME`. One file a benchmark, one report format for all.

A benchmark is a module with a docstring that teaches the theory (what a frame costs at least), and
`run(model: str | None, frames: int, compiled: bool | None) -> list[Row]`; those of the cascade and the
server take more.
"""

BENCHES = {
    "cascade": "Recogniser, language model and voice, each and together, with and without streaming by sentences.",
    "codec": "Mimi: encoder, quantiser, decoder and round trip, one 80 ms frame at a time.",
    "engine": "The live engine: step time by slots, and from open to ready: cold, from memory, from disk.",
    "load": "Loading a model, its memory, and the frames of a conversation with it.",
    "serve": "A server under callers over real sockets: ticks, missed deadlines, underruns, by number of callers.",
}

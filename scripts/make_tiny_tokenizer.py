"""Make the 320-piece SentencePiece model of the tests: `python scripts/make_tiny_tokenizer.py OUT.model`.

Special ids as in the real one (0 unknown, 1 begin, 2 end, 3 padding), bytes as fallback, the rest learned from the role
prompts and a few sentences. The same SentencePiece version gives the same file.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from personaplex.text import PROMPTS, wrapped

SENTENCES = [
    "Can you guarantee that the replacement part will be shipped tomorrow?",
    "What time do you open on Sunday, and how much is a small coffee?",
    "You work for a shop called Blue Door. Information: open from nine to five.",
    "Hello! How can I help you today?",
]


def main() -> None:
    """Train on a fixed text and write the model."""
    text = [wrapped(prompt) for prompt in PROMPTS.values()] + SENTENCES
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        hard_vocab_limit=True,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    Path(sys.argv[1]).write_bytes(model.getvalue())


if __name__ == "__main__":
    main()

"""Make the 1280-piece SentencePiece model of nano: `python scripts/make_nano_tokenizer.py OUT.model`.

Learned from generated lines and role prompts of the training split; case is folded, digits stand alone, bytes are the
fallback, the tag of a role prompt is one piece. Special ids as in the real one (0 unknown, 1 begin, 2 end, 3 padding).
The same SentencePiece version gives the same file. Prints how many pieces typical lines take.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from personaplex.dialogue import VALUES, agent_plan, assistant_prompt, role_prompt, sample_facts, user_plan
from personaplex.text import PROMPTS, TAG, wrapped

N_PIECES = 1280
FACTS = ("price", "has_item", "hours", "opens", "closes")
OPEN = ("greet", "ask_name", "ask_company", "address", "tell_name", "recall_name")


def corpus() -> Iterator[str]:
    """Prompts and spoken lines, the same every time. Only what is spoken or read in training."""
    rng = np.random.default_rng(1024)
    for text in PROMPTS.values():
        yield from [text] * 50
    for _ in range(2500):
        yield role_prompt(rng, sample_facts(rng, "train"), "train")
    names = VALUES["train"].names
    for i in range(1000):
        yield assistant_prompt(rng, names[i % len(names)] if i % 2 else None, "train")
    # Words of the closed answers become pieces of their own; names and companies are endless and come in parts.
    for line in agent_plan(rng):
        yield from [line.text] * (1 if line.intent in OPEN else 20 if line.intent in FACTS else 60)
    for line in user_plan(rng, 6000):
        yield line.text


def train() -> bytes:
    """The model file."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        hard_vocab_limit=True,
        normalization_rule_name="nmt_nfkc_cf",
        split_digits=True,
        user_defined_symbols=[TAG],
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,:;'$?!-",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def report(model: bytes) -> Iterator[str]:
    """How many pieces lines, words and prompts take, one finding a line."""
    pieces = SentencePieceProcessor(model_proto=model)
    rng = np.random.default_rng(0)
    for split, values in VALUES.items():
        for what, texts in (("names", values.names), ("companies", values.companies), ("streets", values.streets)):
            counts = [len(pieces.encode(text)) for text in texts]
            bytes_used = sum(pieces.is_byte(token) for text in texts for token in pieces.encode(text))
            yield f"{split} {what}: {np.mean(counts):.2f} pieces, at most {max(counts)}; {bytes_used} bytes"
        counts = [len(pieces.encode(wrapped(role_prompt(rng, sample_facts(rng, split), split)))) for _ in range(2000)]
        long = np.percentile(counts, 99)
        yield f"{split} role prompts: {np.mean(counts):.1f} pieces, 99 % below {long:.0f}, at most {max(counts)}"
    for what, lines in (("agent lines", agent_plan(rng)), ("user lines", user_plan(rng, 2000))):
        counts = [len(pieces.encode(line.text)) for line in lines]
        words = [len(line.text.split()) for line in lines]
        yield f"{what}: {np.mean(counts):.2f} pieces for {np.mean(words):.2f} words"
    for text in ("a lamp costs twenty one dollars", "you are Zelda from Cosmic Falcon", "$19, 9:30 am", wrapped("Hi.")):
        yield " ".join(pieces.encode(text, out_type=str))


def main() -> None:
    """Train, write the model, say what it does."""
    model = train()
    Path(sys.argv[1]).write_bytes(model)
    sys.stdout.writelines(f"{line}\n" for line in report(model))


if __name__ == "__main__":
    main()

"""Conversations made for a report: a model answers recordings, and what it did is kept as if it had been recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.models.streams import AGENT
from personaplex.reply import Reply
from personaplex.report.recorded import Recorded, Said, of_one_length
from personaplex.units import FRAME_SECONDS


def as_recorded(source: str, user: np.ndarray, reply: Reply, about: Mapping[str, Any]) -> Recorded:
    """What a model answered to `user` [S], read from `source`."""
    agent, user = of_one_length(reply.audio, user[: len(reply.audio)])
    said = [Said(i * FRAME_SECONDS, text) for i, text in enumerate(reply.texts) if text]
    facts = {**about, "seed": reply.seed, "stopped": reply.stopped, "prefill_ms": round(reply.timings.prefill_ms, 1)}
    codes = reply.tokens[AGENT]
    return Recorded(Path(source).stem, "report --model", agent, user, said, (), (), reply.steps, codes, facts)

"""Which numbers are good enough: `gate.toml`, beside the recording that they are measured on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from personaplex.errors import ConfigError
from personaplex.quality.comparison import Numbers

GATE = Path(__file__).with_name("gate.toml")


@dataclass(frozen=True)
class Limit:
    """Of one stream: the largest mean divergence `kl`, in nats, and the least share `top1` of equal choices."""

    kl: float
    top1: float


@dataclass(frozen=True)
class Verdict:
    """What a measurement means.

    "measured": within all limits. "beyond": not, for `reasons`. "random": the reference's weights are no trained
    model's, so that the numbers mean nothing.
    """

    kind: Literal["measured", "beyond", "random"]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Thresholds:
    """The recording's `audio` file, the silence after it, the `seed`; what makes a model trained, and the limits."""

    audio: Path
    tail_seconds: float
    seed: int
    least_padding: float
    limits: Mapping[str, Limit]

    @classmethod
    def read(cls, path: Path = GATE) -> Thresholds:
        """Read a file in the form of `gate.toml`. Raises ConfigError."""
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            audio = data["audio"]
            return cls(
                path.parent / audio["file"],
                float(audio["tail_seconds"]),
                int(audio["seed"]),
                float(data["trained"]["least_padding"]),
                {stream: Limit(**limit) for stream, limit in data["limits"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no thresholds ({error}); see {GATE} for their form") from error

    def judge(self, numbers: Mapping[str, Numbers], padding: float | None) -> Verdict:
        """The verdict on a candidate's `numbers` (by stream) beside a reference of that mean `padding`."""
        if padding is None or padding < self.least_padding:
            sure = "no number" if padding is None else f"{padding:.3f}"
            reason = f"its probability of saying no word is {sure}, a trained model's at least {self.least_padding}"
            return Verdict("random", (reason,))
        reasons = []
        for stream, limit in self.limits.items():
            kl, top1 = numbers[stream]["kl"], numbers[stream]["top1"]
            if kl is None or kl > limit.kl:
                reasons.append(f"{stream} KL is {_said(kl)}, at most {limit.kl}")
            if top1 is None or top1 < limit.top1:
                reasons.append(f"{stream} top-1 agreement is {_said(top1)}, at least {limit.top1}")
        return Verdict("beyond" if reasons else "measured", tuple(reasons))


def _said(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"

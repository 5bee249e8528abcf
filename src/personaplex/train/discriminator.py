"""A critic of spectra: small convolutions over complex STFTs at several windows (Défossez et al. 2022, "MS-STFT").

It learns to tell decoded speech from real; the codec learns to look real to it, layer by layer.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.train.losses import spectrum

WINDOWS = (256, 512, 1024, 2048)


class Judge(nn.Module):
    """One window's critic: pcm [B, S] -> what each layer made of it, the last one the verdict [B, T, F', 1]."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        self.layers += [nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4)) for _ in range(3)]
        self.layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)]

    def __call__(self, pcm: mx.array) -> list[mx.array]:
        """pcm [B, S] -> the layers' outputs, in order."""
        x = mx.stack(list(spectrum(pcm, self.window)), axis=-1)
        made = []
        for layer in self.layers[:-1]:
            x = nn.leaky_relu(layer(x), 0.2)
            made.append(x)
        return [*made, self.layers[-1](x)]


class Critic(nn.Module):
    """The critics of all windows."""

    def __init__(self, channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.judges = [Judge(window, channels) for window in WINDOWS]

    def __call__(self, pcm: mx.array) -> list[list[mx.array]]:
        """pcm [B, S] -> per window, the layers' outputs."""
        return [judge(pcm) for judge in self.judges]


def critic_loss(real: list[list[mx.array]], made: list[list[mx.array]]) -> mx.array:
    """Hinge: verdicts above 1 for real, below -1 for made."""
    pairs = zip(real, made, strict=True)
    total = sum(((nn.relu(1 - r[-1])).mean() + nn.relu(1 + m[-1]).mean() for r, m in pairs), mx.array(0.0))
    return total / len(real)


def pleasing_loss(real: list[list[mx.array]], made: list[list[mx.array]]) -> tuple[mx.array, mx.array]:
    """What the codec is told: minus the verdicts on what it made, and how far the layers are from what real gives."""
    verdict = sum((-m[-1].mean() for m in made), mx.array(0.0)) / len(made)
    windows = zip(real, made, strict=True)
    layers = [(mx.stop_gradient(a), b) for r, m in windows for a, b in zip(r[:-1], m[:-1], strict=True)]
    apart = sum((mx.abs(a - b).mean() / (mx.abs(a).mean() + 1e-6) for a, b in layers), mx.array(0.0))
    return verdict, apart / len(layers)

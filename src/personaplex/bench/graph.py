"""How many kernels a step is: the operations of its graph, counted before it is evaluated.

On a GPU each costs a launch, whatever its size, and a step of one conversation is bound by them before it is bound by
memory. What only looks at memory in another way is no kernel: `VIEWS`. A reshape or a slice that cannot be a view is
a copy, which is not known before it runs; here it counts as none. A fused operation (`mx.compile`) counts as one.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import mlx.core as mx

from personaplex.nn.state import arrays

VIEWS = frozenset(
    {
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Contiguous",
        "Copy",
        "Depends",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    }
)
"""Operations that launch nothing where their input lies in memory as it should."""

_NODE = re.compile(r'^\{ \d+ \[label ="([^"]+)", shape=rectangle\]; \}$', re.MULTILINE)


def operations(*results: Any) -> Counter[str]:
    """Operations by name in the graph of `results` (trees of arrays that are not evaluated)."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays(list(results)))
    return Counter(name.split()[0] for name in _NODE.findall(text.getvalue()))


def n_kernels(*results: Any) -> int:
    """How many of them are kernels."""
    return sum(count for name, count in operations(*results).items() if name not in VIEWS)

"""What a server counts, for Prometheus: `/metrics`. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_STEP_BUCKETS = (
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.07,
    0.075,
    0.08,
    0.085,
    0.09,
    0.1,
    0.12,
    0.16,
    0.24,
    0.5,
    1,
)
"""Seconds. Close together around 0.08, the frame that a step must be done in."""

_FIRST_AUDIO_BUCKETS = (0.1, 0.16, 0.24, 0.32, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)

Gauges = Callable[[], Iterable[tuple[str, str, dict[str, str], float]]]
"""What is looked up when somebody asks: (name, description, labels, value) of each gauge."""


class Metrics:
    """All numbers of one server. `gauges` tells those that are a state, and not a count."""

    def __init__(self, gauges: Gauges) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_States(gauges))
        name = "personaplex_"
        self.step = Histogram(
            f"{name}step_seconds", "One step of all slots; 0.08 is real time.",
            buckets=_STEP_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.first_audio = Histogram(
            f"{name}first_audio_seconds", "From the opening of a conversation to the agent's first frame.",
            ["client"], buckets=_FIRST_AUDIO_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.sessions = Counter(
            f"{name}sessions", "Conversations that were opened.", ["mode", "client"], registry=self.registry
        )
        self.ends = Counter(
            f"{name}session_ends", "Conversations that ended, by reason.", ["reason"], registry=self.registry
        )
        self.refusals = Counter(
            f"{name}refusals", "Callers who were refused, by reason.", ["code"], registry=self.registry
        )
        self.overruns = Counter(
            f"{name}overruns", "Times that input was shed, as it came faster than it was heard.", registry=self.registry
        )
        self.shed = Counter(f"{name}shed_frames", "Frames of input that were shed.", registry=self.registry)
        self.slow_readers = Counter(
            f"{name}slow_readers", "Connections closed because they did not take what they were sent.",
            registry=self.registry,
        )  # fmt: skip

    def page(self) -> bytes:
        """The page in Prometheus's text form."""
        return generate_latest(self.registry)


class _States(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, description, labels, value in self._gauges():
            family = families.setdefault(name, GaugeMetricFamily(name, description, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        return iter(())  # the registry would collect now to learn the names

"""What `/metrics` shows, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from draftloop.serving.metrics import Metrics


def values(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name, without our prefix, and the values of its labels."""
    text = metrics.render().decode()
    return {
        (sample.name.removeprefix("draftloop:"), tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, *labels: str) -> float:
    """One of them."""
    return values(metrics)[name, labels]

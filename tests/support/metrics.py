"""What a process says of itself on its operator's port."""

from __future__ import annotations

import asyncio
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Figures", "read_metrics"]


@dataclass(frozen=True)
class Figures:
    """One reading of /metrics."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name that have these labels; 0 when there is none."""
        return sum(value for found, have, value in self.samples if found == name and labels.items() <= have.items())


def _read(address: str) -> Figures:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return Figures(
        tuple(
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )
    )


async def read_metrics(address: str) -> Figures:
    """Reads `http://{address}/metrics`. Raises OSError when nobody answers."""
    return await asyncio.to_thread(_read, address)

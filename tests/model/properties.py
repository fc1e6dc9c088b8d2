"""The promises that every reachable state and step is held to."""

from __future__ import annotations

__all__ = ["PROPERTIES", "Check", "Violation"]

PROPERTIES = {
    "I1": "a start that was answered is in PostgreSQL",
    "I2": "no step is begun whose outcome is recorded",
    "I3": "an entry is recorded once, of the current leg's claimant, on the history that it was built on",
    "I4": "a fenced owner commits nothing",
    "I5": "from every state the run can come to its end without luck: by actions that are no faults",
    "I6": "an entry that the standing journal acknowledged is not refused by the record",
    "I7": "no two workers with valid leases are at the same step",
    "I8": "an outcome of the current leg is not refused by the journal unless somebody fenced the leg",
}


class Violation(Exception):
    """A property does not hold. Its text begins with the property's name."""


class Check:
    """Raises for the properties that a scenario asks for, and no others."""

    def __init__(self, properties: frozenset[str]) -> None:
        self.properties = properties

    def fail(self, name: str, why: str) -> None:
        """The property does not hold here."""
        if name in self.properties:
            raise Violation(f"{name}: {why}")

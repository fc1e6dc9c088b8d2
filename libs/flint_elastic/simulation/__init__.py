"""Days of work, synthetic or recorded, played against the code that decides, and against others. Seeded: repeats
exactly."""

from flint_elastic.simulation.bound import best_possible
from flint_elastic.simulation.controllers import Controller, Flint, QueueLength, Utilisation
from flint_elastic.simulation.days import DAYS, Day, recorded_day
from flint_elastic.simulation.engine import Outcome, play

__all__ = [
    "DAYS",
    "Controller",
    "Day",
    "Flint",
    "Outcome",
    "QueueLength",
    "Utilisation",
    "best_possible",
    "play",
    "recorded_day",
]

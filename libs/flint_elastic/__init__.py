"""How many workers a pool needs: decisions, forecasts, learned times, the ledger's records. Pure: no I/O, no clock.

    state = PoolState()
    decision = decide(policy, state, observation, forecast)
    ...                       # revive, start, drain, end: in this order
    state = decision.state    # for the next decision

`flint_elastic.training` (imported by nobody but its own process: `python -m flint_elastic.training`) and
`flint_elastic.simulation` are the only parts that need more than the standard library or take long.
"""

from flint_elastic.decide import decide
from flint_elastic.decision import Decision, PoolState
from flint_elastic.durations import DurationBook, DurationSketch
from flint_elastic.forecast import BUCKET_S, NO_FORECAST, Forecast
from flint_elastic.history import ArrivalHistory, seasonal_naive
from flint_elastic.ledger import Verdict, evaluate, record
from flint_elastic.observation import Backlog, Coming, Observation, WorkerState, WorkerView
from flint_elastic.policy import LEVELS, PolicyInvalid, PoolPolicy
from flint_elastic.tracking import LOOK_AHEAD, Tracker

__all__ = [
    "BUCKET_S",
    "LEVELS",
    "LOOK_AHEAD",
    "NO_FORECAST",
    "ArrivalHistory",
    "Backlog",
    "Coming",
    "Decision",
    "DurationBook",
    "DurationSketch",
    "Forecast",
    "Observation",
    "PolicyInvalid",
    "PoolPolicy",
    "PoolState",
    "Tracker",
    "Verdict",
    "WorkerState",
    "WorkerView",
    "decide",
    "evaluate",
    "record",
    "seasonal_naive",
]

"""How much one turn of the event loop takes, by the cost of the turns before it."""

from __future__ import annotations

from flint_bus.pace import Pace, Portion


class Machine:
    """Clocks that the test moves."""

    def __init__(self) -> None:
        self.now_s = self.spent_s = 0.0
        self.pace = Pace(clock=lambda: self.now_s, spent=lambda: self.spent_s)
        self.portion = Portion(self.pace, 128, 16)

    def turns(self, count: int, cost_s: float) -> list[int]:
        sizes = []
        for _ in range(count):
            self.spent_s += cost_s
            sizes.append(self.portion.next())
        return sizes


def test_turns_are_large_while_nobody_is_in_a_hurry_but_none_is_long() -> None:
    machine = Machine()
    assert machine.portion.first() == 128
    assert machine.turns(3, 0.007) == [128, 128, 128]
    assert machine.turns(5, 0.02) == [64, 32, 16, 16, 16], "no fewer than in a hurry"
    assert machine.turns(3, 0.001) == [19, 22, 25]
    assert machine.turns(30, 0.001)[-1] == 128


def test_in_a_hurry_a_turn_that_costs_too_much_is_followed_by_a_smaller_one_until_it_is_short() -> None:
    machine = Machine()
    machine.pace.hurry()
    assert machine.portion.first() == 16
    assert machine.turns(5, 0.003) == [8, 4, 2, 2, 2], "never none at all"
    assert machine.turns(3, 0.0015) == [2, 2, 2], "as long as it may be"
    assert machine.turns(3, 0.0001) == [3, 4, 5]
    assert machine.turns(20, 0.0001)[-1] == 16, "never more than in any hurry"


def test_a_hurry_is_over_after_a_second_and_a_pause_counts_as_no_turn() -> None:
    machine = Machine()
    machine.pace.hurry()
    machine.now_s = 0.9
    assert machine.pace.hurried
    machine.spent_s += 5.0  # of other work, while nothing waited
    assert machine.portion.first() == 16
    assert machine.turns(1, 0.0015) == [16]
    machine.now_s = 1.0
    assert not machine.pace.hurried
    assert machine.turns(2, 5.0) == [128, 64], "the first is not judged by a turn of another kind"
    machine.pace.hurry()
    assert machine.turns(2, 0.003) == [16, 8]

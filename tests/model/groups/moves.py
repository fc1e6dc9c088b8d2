"""Everything that can happen to shard groups: schedulers come, go, lose their leases, take, give and commit."""

from __future__ import annotations

from model.groups.state import ALL_ON, FAULTS, Group, GroupRules, Memory, Op, Scheduler, State
from model.properties import Check

__all__ = ["PROPERTIES", "GroupModel"]

PROPERTIES = {
    "M1": "only a group's owner commits for it; what an earlier one got no answer to lands on the row as it read it",
    "M2": "no entry of the journal is below the watermark and not folded",
    "M3": "no leg is opened twice for one number",
    "M4": "nobody's session is ended while its lease stands: groups that move are given",
    "I5": "from every state free steps lead to the end of all runs, with every group owned by a live scheduler",
}

Step = tuple[str, bool, State]


class GroupModel:
    """`groups` groups, two schedulers, `joiners` that may come. `kinds` of faults, `faults` in all."""

    def __init__(
        self,
        rules: GroupRules = ALL_ON,
        *,
        groups: int = 1,
        legs: int = 1,
        joiners: int = 0,
        leaves: int = 0,
        faults: int = 1,
        kinds: tuple[str, ...] = ("crash", "lease", "unanswered"),
        from_start: bool = False,
    ) -> None:
        self.rules = rules
        self.properties = frozenset(PROPERTIES) - ({"M4"} if "key" in kinds else set())
        self._check = Check(self.properties)
        self._groups, self._legs, self._schedulers = groups, legs, 2 + joiners
        self._from_start = from_start
        self._budget = (*(int(kind in kinds) for kind in FAULTS[:4]), joiners, leaves, faults)
        self._found: list[Step] = []

    @staticmethod
    def canon(st: State) -> State:
        """Every state is its own picture."""
        return st

    def initial(self) -> State:
        """Two schedulers have begun their sessions, nobody owns anything; each group's run is stored, or is to come."""
        nothing: tuple[Memory | None, ...] = (None,) * self._groups
        both = frozenset({0, 1})
        there = [Scheduler("in", number + 1, True, both, nothing) for number in range(2)]
        coming = [Scheduler(groups=nothing) for _ in range(self._schedulers - 2)]
        group = Group() if self._from_start else Group(accepted=True, change=1)
        return State((group,) * self._groups, (*there, *coming), frozenset(), frozenset(), 2, self._budget)

    def ended(self, st: State) -> bool:
        """Whether every run came to its end and every group has an owner that lives and knows of it."""
        return all(
            g.accepted and g.folded == self._legs and not g.open and self._owner(st, number) is not None
            for number, g in enumerate(st.groups)
        )

    @staticmethod
    def _owner(st: State, number: int) -> int | None:
        group = st.groups[number]
        for at, s in enumerate(st.schedulers):
            held = s.groups[number]
            if s.state == "in" and s.lease and s.session == group.session and held is not None and held.stage == "own":
                return at
        return None

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        self._found = []
        for at, scheduler in enumerate(st.schedulers):
            self._life(st, at, scheduler)
            if scheduler.state == "in":
                for number in range(self._groups):
                    self._steward(st, at, scheduler, number)
                    self._lanes(st, at, scheduler, number)
                self._landing(st, at, scheduler)
        for op in sorted(st.late):
            self._late(st, op)
        for number, group in enumerate(st.groups):
            if group.key and (x := self._spend(st, "key")) is not None:
                gone = self._grouped(x, number, group._replace(key=0))
                self._emit(f"the key of {number} IS DELETED by hand", gone, free=False)
            if group.open and group.entries < group.leg:
                after = self._grouped(st, number, group._replace(entries=group.entries + 1))
                self._emit(f"the worker of group {number} appends the end of leg {group.leg}", after)
        return self._found

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _emit(self, label: str, after: State, *, free: bool = True) -> None:
        self._found.append((label, free, after))

    def _spend(self, st: State, fault: str) -> State | None:
        at = FAULTS.index(fault)
        counted = fault not in ("join", "leave")
        if not st.budget[at] or (counted and not st.budget[-1]):
            return None
        left = list(st.budget)
        left[at] -= 1
        if counted:
            left[-1] -= 1
        return st._replace(budget=tuple(left))

    @staticmethod
    def _put(st: State, at: int, scheduler: Scheduler) -> State:
        return st._replace(schedulers=(*st.schedulers[:at], scheduler, *st.schedulers[at + 1 :]))

    @staticmethod
    def _grouped(st: State, number: int, group: Group) -> State:
        return st._replace(groups=(*st.groups[:number], group, *st.groups[number + 1 :]))

    @staticmethod
    def _held(scheduler: Scheduler, number: int, memory: Memory | None) -> Scheduler:
        return scheduler._replace(groups=(*scheduler.groups[:number], memory, *scheduler.groups[number + 1 :]))

    @staticmethod
    def _members(st: State) -> frozenset[int]:
        return frozenset(at for at, s in enumerate(st.schedulers) if s.state != "away" and s.lease)

    @staticmethod
    def _target(members: frozenset[int], number: int) -> int:
        """The same answer at everybody who sees the same members."""
        names = sorted(members, reverse=True)
        return names[number % len(names)]

    # -- life ----------------------------------------------------------------------------------------------------------

    def _life(self, st: State, at: int, s: Scheduler) -> None:
        if s.state == "away":
            if (x := self._spend(st, "join")) is not None:
                self._emit(f"scheduler {at} JOINS", self._begin(x, at), free=False)
            return
        if s.lease and s.state == "gone":
            self._emit(f"the lease of scheduler {at} runs out", self._expire(st, at))
        if s.state != "in":
            return
        others = any(o.state == "in" and o.lease for n, o in enumerate(st.schedulers) if n != at)
        if others and (x := self._spend(st, "crash")) is not None:
            gone = s._replace(state="gone", groups=(None,) * self._groups, op=None)
            late = x.late | ({s.op} if s.op is not None else frozenset())
            self._emit(f"scheduler {at} CRASHES", self._put(x, at, gone)._replace(late=late), free=False)
        if s.lease and (x := self._spend(st, "lease")) is not None:
            self._emit(f"the lease of scheduler {at} IS LOST, it does not know", self._expire(x, at), free=False)
        if s.lease and others and s.op is None and (x := self._spend(st, "leave")) is not None:
            left = x
            for number, memory in enumerate(s.groups):
                owns = x.groups[number].session == s.session and s.session not in x.ended
                if memory is not None and memory.stage == "own" and owns:
                    left = self._leave_in_record(left, number, memory)
            left = left._replace(ended=left.ended | {s.session})
            gone = s._replace(state="gone", groups=(None,) * self._groups)
            self._emit(f"scheduler {at} LEAVES in order", self._expire(self._put(left, at, gone), at), free=False)
        if s.view != self._members(st) and s.lease:
            self._emit(f"scheduler {at} hears who is there", self._put(st, at, s._replace(view=self._members(st))))
        if s.session in st.ended and any(s.groups) and self.rules.fenced_sweep:
            self._fenced(st, at, f"the sweep of scheduler {at} finds that it was fenced")
        if not s.lease and self.rules.step_down:
            over = st._replace(ended=st.ended | {s.session})
            self._emit(f"scheduler {at} learns that its lease is over and begins anew", self._again(over, at))

    def _expire(self, st: State, at: int) -> State:
        """A lease ends in etcd, its keys with it."""
        s = st.schedulers[at]
        groups = tuple(g._replace(key=0) if g.key == s.session else g for g in st.groups)
        return self._put(st, at, s._replace(lease=False))._replace(groups=groups)

    def _again(self, st: State, at: int) -> State:
        """It forgets everything; its commit under way may still land. Then a new session, a new lease."""
        s = st.schedulers[at]
        late = st.late | ({s.op} if s.op is not None else frozenset())
        return self._begin(self._expire(st, at)._replace(late=late), at)

    def _begin(self, st: State, at: int) -> State:
        number = st.sessions + 1
        fresh = Scheduler("in", number, True, frozenset(), (None,) * self._groups)
        after = self._put(st, at, fresh)._replace(sessions=number)
        return self._put(after, at, fresh._replace(view=self._members(after)))

    # -- taking and giving ---------------------------------------------------------------------------------------------

    def _steward(self, st: State, at: int, s: Scheduler, number: int) -> None:
        group, memory = st.groups[number], s.groups[number]
        if memory is None:
            mine = at in s.view and self._target(s.view, number) == at
            if mine and (group.key in (0, s.session) or not self.rules.create):
                looked = self._held(s, number, Memory("looked", group.term))
                self._emit(f"scheduler {at} reads the term of {number}", self._put(st, at, looked))
            return
        if memory.stage == "looked":
            self._win(st, at, s, number, memory)
        elif memory.stage == "won":
            self._take(st, at, s, number, memory)
        elif memory.stage == "taken":
            loaded = self._held(s, number, self._read(group))
            self._emit(f"scheduler {at} reads the runs of {number}", self._put(st, at, loaded))
        elif memory.stage == "own":
            self._giving(st, at, s, number, memory)
        elif memory.stage == "giving":
            busy = s.op is not None and s.op.group == number
            if not busy or not self.rules.settle:
                self._give(st, at, s, number, memory)
        elif memory.stage == "given":
            if not self.rules.give_commit:
                self._leave(st, at, s, number, memory, forget=True)
            else:
                mine = group.key == s.session
                if not self.rules.only_lease:
                    mine = True  # whoever's key stands there by now
                freed = self._grouped(st, number, group._replace(key=0)) if mine else st
                self._emit(
                    f"scheduler {at} gives the key of {number} back", self._put(freed, at, self._held(s, number, None))
                )

    @staticmethod
    def _read(group: Group) -> Memory:
        known = group.accepted
        return Memory("own", 0, known, group.change, group.leg, group.open, group.folded, group.watermark)

    def _win(self, st: State, at: int, s: Scheduler, number: int, memory: Memory) -> None:
        group = st.groups[number]
        if s.lease and (group.key in (0, s.session) or not self.rules.create):
            won = self._grouped(st, number, group._replace(key=s.session))
            mine = self._held(s, number, memory._replace(stage="won"))
            self._emit(f"scheduler {at} wins the key of {number}", self._put(won, at, mine))
        else:
            lost = self._held(s, number, None)
            self._emit(f"scheduler {at} does not win the key of {number}", self._put(st, at, lost))

    def _take(self, st: State, at: int, s: Scheduler, number: int, memory: Memory) -> None:
        """One transaction: my session stands, nobody took the group since I looked; its owner's session ends."""
        group = st.groups[number]
        if s.session in st.ended:
            self._fenced(st, at, f"scheduler {at} may not take {number}: it was fenced")
            return
        if self.rules.term and self.rules.term_first and group.term != memory.term:
            back = self._grouped(st, number, group._replace(key=0)) if group.key == s.session else st
            refused = self._put(back if self.rules.key_back else st, at, self._held(s, number, None))
            self._emit(f"scheduler {at} may not take {number}, somebody did: it gives the key back", refused)
            return
        ended = st.ended
        if group.session and group.session != s.session and self.rules.end_owner:
            ended = ended | {group.session}
            for other in st.schedulers:
                stands = other.session == group.session and other.lease and other.state == "in"
                if stands and group.session not in st.ended:
                    self._check.fail("M4", f"scheduler {at} ends the session of one whose lease stands")
        after = self._grouped(st, number, group._replace(session=s.session, term=group.term + 1))._replace(ended=ended)
        self._emit(f"scheduler {at} takes {number}", self._put(after, at, self._held(s, number, Memory("taken"))))

    def _giving(self, st: State, at: int, s: Scheduler, number: int, memory: Memory) -> None:
        target = self._target(s.view, number) if s.view else at
        if target != at and not memory.doubt:
            giving = self._held(s, number, memory._replace(stage="giving"))
            self._emit(f"scheduler {at} begins to give {number}", self._put(st, at, giving))

    def _give(self, st: State, at: int, s: Scheduler, number: int, memory: Memory) -> None:
        group = st.groups[number]
        if self.rules.give_commit:
            self._leave(st, at, s, number, memory, forget=False)
        else:
            freed = self._grouped(st, number, group._replace(key=0)) if group.key == s.session else st
            after = self._put(freed, at, self._held(s, number, memory._replace(stage="given")))
            self._emit(f"scheduler {at} gives the key of {number} back first", after)

    def _leave(self, st: State, at: int, s: Scheduler, number: int, memory: Memory, *, forget: bool) -> None:
        if s.session in st.ended and self.rules.fence:
            self._fenced(st, at, f"scheduler {at} may not give {number}: it was fenced")
            return
        after = self._leave_in_record(st, number, memory) if st.groups[number].session == s.session else st
        kept = None if forget else Memory("given")
        self._emit(f"scheduler {at} leaves {number} in the record", self._put(after, at, self._held(s, number, kept)))

    def _leave_in_record(self, st: State, number: int, memory: Memory) -> State:
        group = st.groups[number]
        watermark = memory.folded if self.rules.folded else memory.received
        if watermark > group.folded:
            self._check.fail("M2", "the watermark is beyond what is folded")
        return self._grouped(st, number, group._replace(session=0, watermark=max(group.watermark, watermark)))

    def _fenced(self, st: State, at: int, label: str) -> None:
        if self.rules.step_down:
            self._emit(f"{label}, and begins anew", self._again(st, at))
        else:
            self._emit(label, self._put(st, at, st.schedulers[at]._replace(op=None)))

    # -- commits -------------------------------------------------------------------------------------------------------

    def _lanes(self, st: State, at: int, s: Scheduler, number: int) -> None:
        group, memory = st.groups[number], s.groups[number]
        if memory is None or memory.stage not in ("own", "giving"):
            return
        if memory.doubt and s.op is None and self.rules.reread:
            again = self._read(group)._replace(received=max(group.watermark, memory.folded), stage=memory.stage)
            self._emit(f"scheduler {at} reads {number} again", self._put(st, at, self._held(s, number, again)))
        if memory.stage == "giving":
            return  # nothing new is begun
        if group.accepted and not memory.known and self.rules.sweep and s.op is None:
            found = self._read(group)._replace(doubt=memory.doubt)
            self._emit(f"scheduler {at} finds the run of {number}", self._put(st, at, self._held(s, number, found)))
        if memory.received < group.entries:
            read = self._held(s, number, memory._replace(received=memory.received + 1))
            self._emit(f"scheduler {at} reads an entry of {number}", self._put(st, at, read))
        if s.op is not None:
            return
        op: Op | None = None
        if not group.accepted:
            op = Op("accept", number, s.session)
        elif memory.known and not memory.open and memory.folded < self._legs:
            op = Op("open", number, s.session, memory.change, memory.leg + 1)
        elif memory.known and memory.open and memory.received > memory.folded:
            op = Op("fold", number, s.session, memory.change, memory.leg, memory.folded + 1)
        if op is not None:
            self._emit(f"scheduler {at} sends: {op.kind} {number}", self._put(st, at, s._replace(op=op)))

    def _landing(self, st: State, at: int, s: Scheduler) -> None:
        op = s.op
        if op is None:
            return
        after, verdict = self._apply(st, op, late=False)
        s = after.schedulers[at]._replace(op=None)
        memory = s.groups[op.group]
        label = f"{op.kind} {op.group} of scheduler {at}: {verdict}"
        if verdict == "fenced":
            self._fenced(st, at, label)
        else:
            if memory is not None and memory.stage in ("own", "giving"):
                s = self._held(s, op.group, self._answered(after.groups[op.group], memory, op, verdict))
            self._emit(label, self._put(after, at, s))
        if (x := self._spend(st, "unanswered")) is not None:
            doubting = memory._replace(doubt=True) if memory is not None else None
            lost = self._held(st.schedulers[at]._replace(op=None), op.group, doubting)
            hanging = self._put(x, at, lost)._replace(late=x.late | {op})
            self._emit(f"{op.kind} {op.group} of scheduler {at} IS NOT ANSWERED", hanging, free=False)

    @staticmethod
    def _answered(group: Group, memory: Memory, op: Op, verdict: str) -> Memory:
        if verdict == "another row":
            return memory._replace(doubt=True)
        if op.kind == "accept":
            return memory._replace(known=True, change=group.change)
        if op.kind == "open":
            return memory._replace(change=op.change + 1, leg=op.leg, open=True)
        return memory._replace(change=op.change + 1, open=False, folded=op.upto)

    def _late(self, st: State, op: Op) -> None:
        after, verdict = self._apply(st, op, late=True)
        self._emit(f"LATE {op.kind} {op.group} of session {op.session}: {verdict}", after._replace(late=st.late - {op}))
        if op.kind != "accept":
            self._emit(f"{op.kind} {op.group} never comes", st._replace(late=st.late - {op}))

    def _apply(self, st: State, op: Op, *, late: bool) -> tuple[State, str]:
        """What the record makes of a commit."""
        group = st.groups[op.group]
        if op.kind == "accept":  # a start that finds its session ended is stored for whoever owns the group
            if group.accepted:
                return st, "known"
            return self._grouped(st, op.group, group._replace(accepted=True, change=1)), "stored"
        if op.session in st.ended:
            if self.rules.fence:
                return st, "fenced"
            self._check.fail("M1", "a session that has ended commits")
        if not late and group.session not in (0, op.session):
            self._check.fail("M1", "a session commits for a group that another one has taken")
        if group.change != op.change:
            if self.rules.change:
                return st, "another row"
            if op.kind == "open" and op.leg <= group.leg:
                self._check.fail("M3", f"leg {op.leg} is opened again")
            self._check.fail("M1", "a commit replaces what it had not read")
        if op.kind == "open":
            return self._grouped(st, op.group, group._replace(change=group.change + 1, leg=op.leg, open=True)), "opened"
        folded = group._replace(change=group.change + 1, open=False, folded=op.upto)
        return self._grouped(st, op.group, folded), "folded"

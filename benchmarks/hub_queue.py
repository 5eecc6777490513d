"""Workers that take comparisons from a queue: a simulation of events, and its closed forms.

A worker fetches and computes at once; a unit takes as long as the slower of the two. Killed, it
loses the unit that it was at: those before are in the results folder.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np
from hub_family import Job, Work


@dataclass(frozen=True)
class Fleet:
    """The workers and the network; each figure is an assumption unless it was measured.

    workers: machines or containers that take jobs.
    bandwidth: bytes a second that one fetches.
    cores: of one.
    latency: seconds until a request is answered.
    flying: requests of one worker at the same time.
    range_bytes: of a request.
    quota: requests that all may send in a window; None for any number.
    window: seconds of one.
    failing: share of the requests that have to be sent again.
    backoff: seconds before that.
    kills: of a worker, in an hour.
    restart: seconds from a kill until the worker takes a job.
    slow: standard deviation of the logarithm of a worker's speed.
    static: whether each worker has its share of the jobs from the start, as by `--part i/n`.
    seed: of all that is random.
    """

    workers: int = 64
    bandwidth: float = 0.3e9
    cores: int = 2
    latency: float = 0.05
    flying: int = 16
    range_bytes: int = 8 << 20
    quota: int | None = None
    window: float = 300.0
    failing: float = 0.002
    backoff: float = 1.0
    kills: float = 0.02
    restart: float = 120.0
    slow: float = 0.2
    static: bool = False
    seed: int = 0

    def rate(self) -> float:
        """Bytes a second that a worker can fetch: its bandwidth, or so many ranges in flight."""
        if not self.latency:
            return self.bandwidth
        return min(self.bandwidth, self.flying * self.range_bytes / self.latency)

    def seconds(self, work: Work) -> float:
        """What a unit takes where nothing is in the way."""
        if not work.requests:
            return work.core / self.cores
        again = 1 + self.failing
        turns = max(work.turns, math.ceil(work.requests / self.flying))
        waiting = self.failing * work.requests * self.backoff / self.flying
        fetching = max(turns * self.latency, self.latency + again * work.nbytes / self.rate())
        return max(fetching + waiting, work.core / self.cores)


@dataclass
class Outcome:
    """What came of it.

    seconds: until the last unit was there.
    nbytes, requests: fetched and sent, lost ones included.
    held: seconds of workers, from the start until each had nothing more to do.
    waited: of these, for a window to end.
    units, lost: finished; begun and lost by a kill.
    ends: worker → when it had nothing more to do.
    """

    seconds: float = 0.0
    nbytes: float = 0.0
    requests: float = 0.0
    held: float = 0.0
    waited: float = 0.0
    units: int = 0
    lost: int = 0
    ends: dict[int, float] = field(default_factory=dict)


class Quota:
    """Requests that may be sent in fixed windows, first come, first served."""

    def __init__(self, most: int | None, window: float) -> None:
        self._most, self._window = most, window
        self._at, self._left = 0, most or 0

    def take(self, now: float, sent: float) -> float:
        """When the last of so many requests may be sent."""
        if self._most is None:
            return now
        here = int(now // self._window)
        if here > self._at:
            self._at, self._left = here, self._most
        if sent <= self._left:
            self._left -= sent
            return max(now, self._at * self._window)
        more = math.ceil((sent - self._left) / self._most)
        self._left += more * self._most - sent
        self._at += more
        return self._at * self._window


@dataclass(frozen=True)
class _Task:
    """A job, how far it is, and whether this worker has opened its checkpoints."""

    job: Job
    at: int = 0
    opened: bool = False


class _Run:
    def __init__(self, jobs: Sequence[Job], fleet: Fleet) -> None:
        self.fleet, self.outcome, self.quota = fleet, Outcome(), Quota(fleet.quota, fleet.window)
        self.random = np.random.default_rng(fleet.seed)
        self.speed = np.exp(self.random.normal(0, 1, fleet.workers) * fleet.slow).tolist()
        shared: deque[_Task] = deque()
        own: list[deque[_Task]] = [deque() for _ in range(fleet.workers)]
        self.queues = own if fleet.static else [shared] * fleet.workers
        for i, job in enumerate(jobs):
            self.queues[i % fleet.workers].append(_Task(job))
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.order, self.idle = count(), list[int]()
        self.dies = [self._death(0.0) for _ in range(fleet.workers)]

    def run(self) -> Outcome:
        """All jobs, to the end."""
        for worker in range(self.fleet.workers):
            self._next(worker, None, 0.0)
        while self.events:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
        self.outcome.seconds = max(self.outcome.ends.values(), default=0.0)
        self.outcome.held = sum(self.outcome.ends.values())
        return self.outcome

    def _then(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), happen))

    def _death(self, now: float) -> float:
        kills = self.fleet.kills
        return now + self.random.exponential(3600 / kills) if kills else math.inf

    def _next(self, worker: int, task: _Task | None, now: float) -> None:
        """Gives a worker that is free its next unit."""
        if task is None or task.at == len(task.job.units):
            if not self.queues[worker]:
                self.idle.append(worker)
                return
            task = self.queues[worker].popleft()
        if self.dies[worker] < now:  # while it had nothing to do: another one is in its place
            self.dies[worker] = self._death(now)
        work = task.job.units[task.at] if task.opened else task.job.opening
        taken = self.fleet.seconds(work) / self.speed[worker]
        sent = work.requests * (1 + self.fleet.failing)
        allowed = self.quota.take(now, work.counted * (1 + self.fleet.failing))
        done = max(now + taken, allowed + min(taken, self.fleet.latency))
        share = min((self.dies[worker] - now) / (done - now), 1.0) if done > now else 1.0
        self.outcome.nbytes += share * work.nbytes * (1 + self.fleet.failing)
        self.outcome.requests += share * sent
        self.outcome.ends[worker] = now + share * (done - now)
        if share < 1:
            self.outcome.lost += task.opened
            self._then(self.dies[worker], partial(self._again, worker, _Task(task.job, task.at)))
            return
        self.outcome.waited += done - now - taken
        self.outcome.units += task.opened
        self._then(done, partial(self._next, worker, _further(task)))

    def _again(self, worker: int, task: _Task, now: float) -> None:
        """A worker was killed: its job is the next, whoever comes first."""
        back = now + self.fleet.restart
        self.dies[worker] = self._death(back)
        self.queues[worker].appendleft(task)
        self._then(back, partial(self._next, worker, None))
        if self.idle and not self.fleet.static:
            self._next(self.idle.pop(), None, now)


def _further(task: _Task) -> _Task:
    """The same job, a step further."""
    return _Task(task.job, task.at + task.opened, True)


def simulate(jobs: Sequence[Job], fleet: Fleet) -> Outcome:
    """What becomes of these jobs with these workers; the same arguments give the same outcome."""
    return _Run(jobs, fleet).run()

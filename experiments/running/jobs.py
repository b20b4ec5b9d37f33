"""Jobs of a stage: which are outstanding, who does them, and what became of each.

A stage lists its jobs. Those whose result is there already are not done again; the others go to worker
processes, one after another, each under a lock. A job that fails does not stop the others.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.running import stopping
from experiments.running.errors import ExpectedError
from experiments.running.locks import Locks
from experiments.running.stopping import Stopped
from experiments.running.work import Context, function
from experiments.running.workers import Worker, get_ready

_POLL = 0.5
"""Seconds after which the parent looks around even if no worker has said anything."""


@dataclass(frozen=True)
class Job:
    """Something a worker does: a training, an evaluation, a count, a timing."""

    name: str
    """For people: the experiment and, where there are several, the seed."""
    digest: str
    """Of all that the result depends on; it names the lock."""
    work: str
    """The function that does it, as ``module:name``. It gets a ``Context`` and the arguments, and
    returns what to say when it is done."""
    arguments: dict[str, Any]
    is_done: Callable[[], bool]
    """Whether the result is there; asked again when the lock is taken, as another process may have
    done the job in between."""


@dataclass
class Outcome:
    """What became of a stage's jobs."""

    done: int = 0
    """Jobs done by this process."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why each job failed, by its name."""
    left: list[str] = field(default_factory=list)
    """Jobs that were not ended because the stage was asked to stop."""


@dataclass(frozen=True)
class Pool:
    """How jobs are spread over this machine.

    Args:
        workers: processes; 0 does the jobs in this process.
        threads: of each worker, or of this process; 0 leaves torch its own number.
        devices: GPUs, each of which one worker at a time gets.
        imports: modules that the jobs need, which are imported once for all workers.
        rank: of this process among those that torchrun started.
        is_group: whether torchrun started several, which do every job together.
    """

    workers: int
    threads: int
    devices: int = 0
    imports: Sequence[str] = ()
    rank: int = 0
    is_group: bool = False


def do_jobs(stage: str, jobs: Iterable[Job], pool: Pool, locks: Path) -> Outcome:
    """Does the outstanding ones of a stage's jobs.

    Args:
        stage: for the progress bar.
        jobs: in the order in which they are to start.
        pool: who does them.
        locks: folder for the locks.

    Raises:
        StorageError: the locks cannot be written.
    """
    known = list(jobs)
    if pool.rank > 0:
        get_ready(pool.imports, pool.threads)
        return _follow(known)
    pending = deque(job for job in known if not job.is_done())
    if not pending and not pool.is_group:
        return Outcome()
    with Locks(locks) as held, _Display(stage, len(pending)) as display:
        todo = _Todo(pending, held)
        if pool.workers == 0:
            get_ready(pool.imports, pool.threads)
        if pool.is_group:
            return _lead(todo, display)
        if pool.workers == 0:
            return _do_here(todo, display)
        return _do_with_workers(todo, display, pool)


def finish(stage: str, outcome: Outcome) -> None:
    """Says what is left and what failed, and exits with the code that belongs to it.

    Returns only if every job is done.
    """
    for name, problem in outcome.failed.items():
        print(f"{stage}: {name}: {problem}", file=sys.stderr)
    if outcome.failed:
        print(f"{stage}: {count(len(outcome.failed), 'job')} failed, {outcome.done} done", file=sys.stderr)
    code = stopping.exit_code()
    if code is not None and outcome.left:
        shown = ", ".join(outcome.left[:5]) + (" ..." if len(outcome.left) > 5 else "")
        print(
            f"{stage}: stopped with {count(len(outcome.left), 'job')} left ({shown}); "
            "the same command goes on where it stopped",
            file=sys.stderr,
        )
        sys.exit(code)
    if outcome.failed:
        sys.exit(1)


class _Todo:
    """The jobs that are left, handed out one at a time under a lock."""

    def __init__(self, pending: deque[Job], locks: Locks):
        self.pending = pending
        self.locks = locks
        self.outcome = Outcome()
        self._waiting_for: set[str] = set()

    def next(self) -> Job | None:
        """A job that this process may do now; ``None`` if the others have all that is left."""
        for _ in range(len(self.pending)):
            job = self.pending.popleft()
            holder = self.locks.acquire(job.digest)
            if holder is not None:
                if not job.is_done():
                    self.pending.append(job)
                    if job.name not in self._waiting_for:
                        self._waiting_for.add(job.name)
                        tqdm.write(f"{job.name}: is being done by {holder}")
                continue
            if not job.is_done():
                return job
            self.locks.release(job.digest)
        return None

    def end(self, job: Job, failure: str | None = None, *, stopped: bool = False) -> None:
        """Notes what became of a job."""
        self.locks.release(job.digest)
        if stopped:
            self.outcome.left.append(job.name)
        elif failure is not None:
            self.outcome.failed[job.name] = failure
        else:
            self.outcome.done += 1

    def close(self) -> Outcome:
        """The outcome, once no job runs any more."""
        self.outcome.left += [job.name for job in self.pending]
        return self.outcome


def _do_here(todo: _Todo, display: _Display) -> Outcome:
    """Does the jobs in this process."""
    while todo.pending and not stopping.requested():
        job = todo.next()
        if job is None:
            time.sleep(_POLL)
            continue
        display.start(job)
        try:
            line = function(job.work)(display.context(job), **job.arguments)
        except Stopped:
            todo.end(job, stopped=True)
        except ExpectedError as error:
            todo.end(job, _one_line(error))
        except Exception as error:
            traceback.print_exc()
            todo.end(job, f"{type(error).__name__}: {_one_line(error)}")
        else:
            todo.end(job)
            display.say(f"{job.name}: {line}")
        display.end(job)
    return todo.close()


def _lead(todo: _Todo, display: _Display) -> Outcome:
    """Does the jobs together with other processes, which torchrun started and which follow this one.

    A failure of one process ends them all: the others would wait for it.
    """
    from experiments.running.devices import agreed

    while todo.pending and not stopping.requested():
        job = todo.next()
        if job is None:
            time.sleep(_POLL)
            continue
        agreed(job.digest)
        display.start(job)
        try:
            line = function(job.work)(display.context(job), **job.arguments)
        except Stopped:
            todo.end(job, stopped=True)
            break
        todo.end(job)
        display.end(job)
        display.say(f"{job.name}: {line}")
    agreed("")
    return todo.close()


def _follow(known: Sequence[Job]) -> Outcome:
    """Does its part of the jobs that the leading process begins."""
    from experiments.running.devices import agreed

    by_digest = {job.digest: job for job in known}
    context = Context(None, progress=lambda share: None, say=lambda line: None)  # noqa: ARG005
    while digest := agreed(None):
        job = by_digest[digest]
        try:
            function(job.work)(context, **job.arguments)
        except Stopped:
            continue
    return Outcome()


def _do_with_workers(todo: _Todo, display: _Display, pool: Pool) -> Outcome:
    """Hands the jobs to worker processes, each to the next idle one."""
    count = min(pool.workers, len(todo.pending))
    workers: list[Worker] = []
    running: dict[Worker, Job] = {}
    tries: dict[str, int] = {}
    told = False
    try:
        with suppress(Stopped):  # asked to while they start
            for i in range(count):
                device = i % pool.devices if pool.devices else None
                workers.append(Worker(device, pool.threads, pool.imports))
        while running or (todo.pending and not stopping.requested()):
            if stopping.requested():
                if not told:
                    told = True
                    for worker in running:
                        worker.stop()
            else:
                for worker in workers:
                    if worker not in running and (job := todo.next()) is not None:
                        running[worker] = job
                        display.start(job)
                        worker.give(job.work, job.arguments)
            for worker, message in Worker.messages(list(running), _POLL):
                job = running[worker]
                kind, content = message
                if kind == "progress":
                    display.progress(job, content)
                    continue
                if kind == "say":
                    display.say(content)
                    continue
                del running[worker]
                display.end(job)
                if kind == "done":
                    todo.end(job)
                    display.say(f"{job.name}: {content}")
                elif kind == "stopped":
                    todo.end(job, stopped=True)
                elif kind == "failed":
                    problem, trace = content
                    if trace:
                        display.say(trace)
                    todo.end(job, problem)
                else:
                    assert kind == "died"
                    workers.remove(worker)
                    with suppress(Stopped):
                        workers.append(worker.replaced())
                    tries[job.digest] = tries.get(job.digest, 0) + 1
                    if stopping.requested():
                        todo.end(job, stopped=True)
                    elif tries[job.digest] > 1:
                        todo.end(job, f"its worker process died twice ({content})")
                    else:
                        display.say(f"{job.name}: its worker process died ({content}); tried once more")
                        todo.locks.release(job.digest)
                        todo.pending.appendleft(job)
    finally:
        for worker in workers:
            worker.close()
    return todo.close()


class _Display:
    """One bar for all jobs of a stage: how many are done, the time left, and what is running."""

    def __init__(self, stage: str, count: int):
        self._shares: dict[str, float] = {}
        self._ended = 0
        self._bar = tqdm(
            total=count,
            desc=stage,
            bar_format="{desc}: {n:.1f} of {total_fmt} jobs |{bar:20}| {elapsed}, {remaining} left{postfix}",
            mininterval=0.5,
            disable=None,  # where nobody watches, lines are enough
            leave=False,
        )

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def context(self, job: Job) -> Context:
        """What a job that runs in this process may say."""
        return Context(None, partial(self.progress, job), self.say)

    def start(self, job: Job) -> None:
        self._shares[job.name] = 0.0
        self._draw()

    def progress(self, job: Job, share: float) -> None:
        self._shares[job.name] = share
        self._draw()

    def end(self, job: Job) -> None:
        self._shares.pop(job.name, None)
        self._ended += 1
        self._draw()

    def say(self, line: str) -> None:
        tqdm.write(line)
        sys.stdout.flush()

    def _draw(self) -> None:
        running = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self._shares.items())
        self._bar.set_postfix_str(running, refresh=False)
        self._bar.update(self._ended + sum(self._shares.values()) - self._bar.n)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def count(number: int, what: str) -> str:
    """A number of things in words, such as ``3 trainings``."""
    return f"{number} {what}{'' if number == 1 else 's'}"

"""Worker processes: copies of a process that has imported what they need, which do one job after another.

The stage's own process needs no torch at all, and a worker that died is replaced in milliseconds.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from experiments.running import stopping
from experiments.running.errors import ExpectedError
from experiments.running.server import Forked
from experiments.running.stopping import Stopped
from experiments.running.work import Context, function

Message = tuple[str, Any]
"""What a worker says: ``progress``, ``say``, ``done``, ``failed``, ``stopped`` or ``died``, and a value."""


class WorkerDiedError(Exception):
    """A process that was asked for something ended without an answer."""


class Worker:
    """A worker process, seen from the process that hands out the jobs.

    Args:
        device: number of the GPU that it uses; ``None`` for none.
        threads: that torch uses in it; 0 leaves torch its own number.
        imports: modules that it has imported when it starts.
    """

    def __init__(self, device: int | None, threads: int, imports: Sequence[str]):
        self._settings = (device, threads, tuple(imports))
        self._process = Forked(imports, "experiments.running.workers:work", [device, threads])

    def give(self, work: str, arguments: dict[str, Any]) -> None:
        """Hands over a job."""
        with suppress(OSError):  # a process that has died is found by ``messages``
            self._process.connection.send((work, arguments))

    def stop(self) -> None:
        """Asks the worker to end its job early."""
        self._process.send_signal(signal.SIGTERM)

    def replaced(self) -> Worker:
        """A new worker with the same settings, in the place of one that died."""
        self._process.close()
        return Worker(*self._settings)

    def close(self) -> None:
        """Ends the process."""
        with suppress(OSError):
            self._process.connection.send(None)
        if self._process.exit_status(timeout=30) is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.close()

    @staticmethod
    def messages(workers: Sequence[Worker], timeout: float) -> Iterator[tuple[Worker, Message]]:
        """What workers have said, waiting for the first word at most ``timeout`` seconds."""
        by_connection = {worker._process.connection: worker for worker in workers}
        for ready in wait(list(by_connection), timeout):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                yield worker, ready.recv()
            except (EOFError, OSError):
                yield worker, ("died", _ending(worker._process.exit_status(timeout=5)))


def ask(place: str, *arguments: Any, imports: Sequence[str] = ()) -> Any:
    """The result of a function that needs torch, from a process that may import it.

    Raises:
        ExpectedError: the function raised one.
        WorkerDiedError: it raised something else, or ended the process.
    """
    worker = Worker(None, 1, imports)
    try:
        worker.give("experiments.running.workers:_answer", {"place": place, "arguments": arguments})
        for _, (kind, content) in _until_the_end(worker):
            if kind == "done":
                return content
            if kind == "error":
                raise content
            if kind == "failed":
                raise WorkerDiedError("\n".join(str(part) for part in content if part))
            raise WorkerDiedError(f"{place}: {content}")
    finally:
        worker.close()


def _until_the_end(worker: Worker) -> Iterator[tuple[Worker, Message]]:
    while True:
        yield from Worker.messages([worker], 1.0)


def _answer(context: Any, place: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ARG001 (a job's signature)
    return function(place)(*arguments)


def get_ready(imports: Sequence[str], threads: int) -> None:
    """Imports what jobs need, and has torch, if that is part of it, use a number of threads.

    Args:
        imports: modules.
        threads: results depend on it; 0 leaves torch its own number.
    """
    for name in imports:
        importlib.import_module(name)
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def work(connection: Connection, device: int | None, threads: int) -> None:
    """What a worker process does until it is told that there is no more."""
    stopping.reset()
    stopping.listen()
    get_ready((), threads)
    with suppress(EOFError, OSError):  # then the parent has gone
        while True:
            while not connection.poll(1.0):
                if stopping.requested():
                    return
            given = connection.recv()
            if given is None:
                return
            # While a job runs the parent says nothing more: what can be read then is the connection's end.
            stopping.watch(lambda: connection.poll(0))
            message = _do(connection, device, *given)
            stopping.watch(None)
            connection.send(message)


def _do(connection: Connection, device: int | None, work: str, arguments: dict[str, Any]) -> Message:
    def tell(kind: str, content: object) -> None:
        with suppress(OSError):  # a parent that has gone is found by ``stopping``
            connection.send((kind, content))

    context = Context(device, partial(tell, "progress"), partial(tell, "say"))
    try:
        return "done", function(work)(context, **arguments)
    except Stopped as stopped:
        return "stopped", str(stopped)
    except ExpectedError as error:
        if work.endswith(":_answer"):
            return "error", error
        return "failed", (" ".join(str(error).split()), "")
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return "failed", (problem, traceback.format_exc())


def _ending(code: int | None) -> str:
    if code is None:
        return "it closed its connection and runs on"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

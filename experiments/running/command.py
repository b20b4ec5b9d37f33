"""The command line of a stage: arguments, exit codes, and one clear line when something is wrong."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO, TypeVar

from experiments.running import machine, stopping, workers
from experiments.running.errors import ExpectedError
from experiments.running.jobs import Pool

T = TypeVar("T")


def parser(stage: str, description: str | None) -> argparse.ArgumentParser:
    """An argument parser that is called as the stage is."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{stage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a stage's jobs, which other machines share."""

    number: int
    """From 1."""
    of: int

    def take(self, jobs: Sequence[T]) -> list[T]:
        """This shard's jobs: every one is in one shard, whatever is done already."""
        return [job for i, job in enumerate(jobs) if i % self.of == self.number - 1]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds what narrows a stage to some experiments."""
    parser.add_argument(
        "experiments", nargs="*", metavar="KEY", help="keys of 'experiments' in params.yaml; none means all"
    )


def add_spreading(parser: argparse.ArgumentParser, *, seeds: bool) -> None:
    """Adds what spreads a stage's jobs over processes, machines and time."""
    if seeds:
        parser.add_argument(
            "--seeds", nargs="+", type=natural, metavar="N", help="instead of the seeds of params.yaml"
        )
    parser.add_argument(
        "--shard", type=_shard, default=Shard(1, 1), metavar="I/N",
        help="do the I-th of N parts of the jobs; other machines do the others",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=_minutes, metavar="M",
        help=f"stop in time, with checkpoints; exit code {stopping.OUT_OF_TIME} if something is left",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=natural, metavar="N",
        help="worker processes; 0 does the work in this one. Default: one for each GPU, else cores / threads",
    )  # fmt: skip


def choose(keys: Iterable[str], known: Iterable[str], find: Callable[[str], object]) -> list[str]:
    """The experiments that a command was given, or all.

    Args:
        keys: as given.
        known: all experiments, in their order.
        find: raises the error that belongs to an unknown one.
    """
    given = list(keys)
    for key in given:
        find(key)
    return [key for key in known if key in given] if given else list(known)


def selection(key: str, seed: int, seeds: Iterable[int]) -> str:
    """How a command is told of one experiment and seed, where all of ``seeds`` go without saying."""
    return key if seed in seeds else f"{key} --seeds {seed}"


def pool(arguments: argparse.Namespace, threads: int, imports: Sequence[str], *, alone: bool = False) -> Pool:
    """Who does the jobs of a stage: one worker for each GPU, or as many as the cores allow.

    Args:
        arguments: of the command line.
        threads: of each worker; 0 takes all cores.
        imports: modules that the jobs need.
        alone: whether one job at a time has the machine, as timings must.
    """
    if arguments.minutes is not None:
        stopping.set_deadline(60 * arguments.minutes)
    if is_group():
        return Pool(0, threads, imports=imports, rank=int(os.environ["RANK"]), is_group=True)
    devices = 0
    if machine.may_have_gpu() and arguments.workers != 0:
        devices = workers.ask("experiments.running.devices:count", imports=imports)
    count = devices or (1 if threads == 0 else max(1, machine.cores() // threads))
    if alone:
        count = 1
    if arguments.workers is not None:
        count = arguments.workers
    return Pool(count, threads, devices, imports)


def is_group() -> bool:
    """Whether torchrun started several processes, which do every job together."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def run(stage: str, main: Callable[[], None], again: str = "the same command does it") -> None:
    """Runs a stage; an expected error is one line on standard error and exit code 1.

    Args:
        stage: its name, which the line begins with.
        main: what it does.
        again: how to go on where somebody stopped it.
    """
    # cuBLAS reads this when it starts; without it deterministic matrix products are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not gc.isenabled():
        # Ends what the package's __init__ began: what the imports made is never looked at again.
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)  # the same for what a stage imports later
    stopping.reset()
    stopping.listen()
    try:
        main()
    except ExpectedError as error:
        sys.exit(f"{stage}: {' '.join(str(error).split())}")
    except stopping.Stopped as stopped:
        print(f"{stage}: stopped {stopped}; {again}", file=sys.stderr)
        sys.exit(stopping.exit_code())
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout):
            raise  # a pipe of ours, which nobody should have closed
        # Whoever read what it prints, say `head`, has enough; else the last flush would fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted", file=sys.stderr)
        sys.exit(stopping.EXIT_CODES[signal.SIGINT])
    finally:
        stopping.restore()


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a pipe's other end is closed."""
    poll = select.poll()
    poll.register(stream, 0)  # errors are told without being asked for
    return bool(poll.poll(0))


def natural(text: str) -> int:
    """A whole number of the command line, at least 0."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number from 0 to 999999999")
    return int(text)


def count(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number from 1 to 999999999")
    return int(text)


def hours(text: str) -> float:
    """An argument that is a number of hours."""
    return _time(text, "hours")


def setting(text: str) -> tuple[str, str]:
    """An argument of the form NAME=VALUE."""
    match = re.fullmatch(r"([a-z][a-z-]*)=(.+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}'; expected NAME=VALUE, such as partition=gpu")
    return match[1], match[2]


def _minutes(text: str) -> float:
    return _time(text, "minutes")


def _time(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a number of {unit} above 0")
    return value


def _shard(text: str) -> Shard:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}'; expected I/N with I from 1 to N, such as 3/16")
    return Shard(int(match[1]), int(match[2]))

"""Hands hostile inputs to the stages, and looks how they take it.

    PYTHONPATH=.:tests python tests/fuzzing.py --inputs 200      (make fuzz)

Each has to be refused: a line, an exit code that is not 0, no traceback, nothing of it executed, within 10 s
and 1 GB. A stage may also do a broken result of its own again. An input that is spoilt into something valid
is no hostile one; another takes its place.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hostile
from conftest import ROOT, Workspace

MOST_SECONDS = 10.0
MOST_BYTES = 10**9


@dataclass(frozen=True)
class Verdict:
    """How an input was taken."""

    case: hostile.Case
    answer: str
    """``refused``, ``repaired``, ``valid``, or what is wrong."""
    line: str
    seconds: float
    bytes: int
    """Of memory, beyond what the process had when it began."""


def prepare_folder(folder: Path) -> None:
    """A small run, all of whose results are there, and a checkpoint in ``kept/``."""
    workspace = Workspace(folder)
    workspace.params["experiments"]["spgnet-small"]["options"]["stages"] = 1
    workspace.profile["recipe"]["steps"] = 2
    workspace.profile["training"]["checkpoint_every"] = 1
    with contextlib.chdir(folder):
        workspace.write()
        shutil.copytree(ROOT / "results/published", "results/published")
        kept = folder / "kept/checkpoint.pt"
        kept.parent.mkdir()
        for stage in ("prepare", "train", "evaluate", "tables"):
            if stage == "train":
                _keep_checkpoint(workspace, kept)
            message = workspace.call(stage)
            assert not message, message


def _keep_checkpoint(workspace: Workspace, kept: Path) -> None:
    """Trains, and keeps the checkpoint of the first step, which a finished training removes."""
    from experiments.training import loop

    write = loop._write

    def keep(*arguments: object) -> None:
        source = arguments[5].folder.checkpoint  # type: ignore[attr-defined]
        if "gun-small" in str(source):
            shutil.copy(source, kept)
        write(*arguments)  # type: ignore[arg-type]

    loop._write = keep  # type: ignore[assignment]
    try:
        assert not workspace.call("train")
    finally:
        loop._write = write


def try_input(number: int, template: Path, folder: Path) -> Verdict:
    """Spoils a copy of the template and runs the stage that meets it, in a process of its own."""
    shutil.copytree(template, folder)
    output = folder / "output.txt"
    with contextlib.chdir(folder):
        case = hostile.make(number)
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        _run(case, folder, output)
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > 3 * MOST_SECONDS:
            os.kill(child, 9)
        time.sleep(0.005)
    seconds = time.monotonic() - began
    code, said = os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    used = max(0, usage.ru_maxrss - before) * 1024
    answer = _judge(case, code, said, lines, seconds, used, (folder / hostile.MARK).exists())
    shutil.rmtree(folder)
    return Verdict(case, answer, lines[-1] if lines else "", seconds, used)


def _run(case: hostile.Case, folder: Path, output: Path) -> None:
    """What the child does; it does not return."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="replace")  # noqa: SIM115
    code = 1
    try:
        os.chdir(folder)
        message = Workspace(folder).call(*case.command)
        code = 1 if message not in ("", "0") else 0
        if message and not message.isdigit():
            print(message, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _judge(
    case: hostile.Case, code: int, said: str, lines: list[str], seconds: float, used: int, executed: bool
) -> str:
    if executed:
        return "EXECUTED CODE"
    if "Traceback" in said:
        return "TRACEBACK"
    if seconds > MOST_SECONDS:
        return "TOOK TOO LONG"
    if used > MOST_BYTES:
        return "TOOK TOO MUCH MEMORY"
    if code == 0:
        return "repaired" if case.repairable else "valid"
    if code < 0:
        return f"DIED OF SIGNAL {-code}"
    return "refused" if lines else "SAID NOTHING"


def fuzz(inputs: int, first: int = 0, show: Callable[[str], None] = lambda line: None) -> list[Verdict]:  # noqa: ARG005
    """Tries inputs until so many hostile ones are judged, and shows a line of each."""
    with tempfile.TemporaryDirectory() as place:
        template = Path(place) / "template"
        template.mkdir()
        prepare_folder(template)
        verdicts: list[Verdict] = []
        number = first
        while sum(verdict.answer != "valid" for verdict in verdicts) < inputs:
            verdict = try_input(number, template, Path(place) / "case")
            what, line = verdict.case.what[:60], verdict.line[:140]
            show(f"{number:4} {verdict.case.kind:10} {verdict.answer:9} {what}: {line}")
            verdicts.append(verdict)
            number += 1
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    verdicts = fuzz(arguments.inputs, arguments.first, partial(print, flush=True))
    hostile_ones = [verdict for verdict in verdicts if verdict.answer != "valid"]
    table = Counter((verdict.case.kind, verdict.answer) for verdict in verdicts)
    for (kind, answer), count in sorted(table.items()):
        print(f"{kind:10} {answer:20} {count}")
    print(
        f"{len(hostile_ones)} hostile inputs, at most {max(v.seconds for v in hostile_ones):.1f} s and "
        f"{max(v.bytes for v in hostile_ones) / 1e6:.0f} MB"
    )
    sys.exit(0 if all(v.answer in ("refused", "repaired", "valid") for v in verdicts) else 1)


if __name__ == "__main__":
    main()

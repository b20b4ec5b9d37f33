"""Stages that are cut off again and again, and end in the bytes of a run that nobody disturbed.

    PYTHONPATH=.:tests python tests/soak.py --kills 50 --seed 0      (make soak)

Each kill is of one stage at a random moment: SIGKILL, SIGTERM, a disk that is full, or the loss of one of its
worker processes. After each, no file under a final name may be empty or broken, and a training must not
have lost more than the steps between two checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from clones import Clone, assert_same
from conftest import wait_until_gone, workers_in
from PIL import Image
from safetensors import safe_open

from experiments.training.checkpoints import read_checkpoint

CHECKPOINT_EVERY = 2
OUTPUTS = {
    "prepare": ("data/prepared/tiny",),
    "train": ("results/tiny/train",),
    "evaluate": ("results/tiny/evaluate", "results/tiny/predictions"),
    "claims": ("results/tiny/claims.csv",),
    "tables": ("results/tiny/summary.csv", "results/tiny/metrics", "reports/tables"),
    "report": ("results/tiny/report.json", "reports/figures", "reports/index.html"),
}
"""The stages that are killed, in their order, and what is removed to have them work again."""
FAR_TOO_SMALL = {
    "prepare": 150,
    "train": 400_000,
    "evaluate": 2000,
    "claims": 20,
    "tables": 400,
    "report": 3000,
}
"""Bytes that a file may have on the full disk; some of each stage's are larger."""
KINDS = ("SIGKILL", "SIGTERM", "full disk", "lost worker")


@dataclass
class Soak:
    """A clone of the repository whose stages are killed.

    Args:
        clone: with tiny params.
        chance: decides what is killed, how and when.
    """

    clone: Clone
    chance: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage, undisturbed: the shortest so far."""
    killed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often, by stage and kind."""
    resumed: list[int] = field(default_factory=list)
    """The steps at which trainings went on."""
    newest: dict[str, int] = field(default_factory=dict)
    """Steps of the checkpoints that the last run left, by experiment."""
    complete: set[str] = field(default_factory=set)
    """Stages that have nothing to do."""

    def __post_init__(self) -> None:
        self.clone.profile["training"]["checkpoint_every"] = CHECKPOINT_EVERY
        self.clone.profile["recipe"]["steps"] = 8
        self.clone.write()

    def undisturbed(self) -> dict[str, bytes]:
        """Runs everything once; what that wrote."""
        for stage in OUTPUTS:
            started = time.monotonic()
            self._finish(stage)
            self.seconds[stage] = time.monotonic() - started
        return self.clone.generated()

    def kill(self, number: int) -> str:
        """Kills a stage once; what happened, in words."""
        # Of every eight kills two are of the training and two of the evaluation.
        stage = ("train", "prepare", "evaluate", "train", "claims", "tables", "report", "evaluate")[
            number % 8
        ]
        kind = self.chance.choice(KINDS if stage in ("train", "evaluate") else KINDS[:3])
        stages = list(OUTPUTS)
        for earlier in stages[: stages.index(stage)]:
            if earlier not in self.complete:
                self._finish(earlier)
        if stage in self.complete or self.chance.random() < 0.3:
            self._remove(stage)
        code, ending = self._cut(stage, kind)
        self.complete -= {stage}
        if code == 0:
            self.complete |= {stage}
        wait_until_gone(self.clone.folder)
        self.check_files()
        self.killed[stage, kind] += 1
        return f"{number + 1:3} {stage:8} {kind:11} {ending}"

    def finish(self) -> dict[str, bytes]:
        """Runs everything once more, undisturbed; what there is then."""
        for stage in OUTPUTS:
            self._finish(stage)
        return self.clone.generated()

    def check_files(self) -> None:
        """Fails if a file under a final name is empty or broken."""
        for folder in ("data/prepared", "results/tiny", "reports"):
            for path in (self.clone.folder / folder).rglob("*"):
                if not path.is_file() or any(part.startswith(".") for part in path.parts[-3:]):
                    continue
                assert path.stat().st_size > 0, path
                if path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.suffix == ".safetensors":
                    with safe_open(path, "np") as tensors:
                        list(tensors.keys())
                elif path.suffix == ".npz":
                    with np.load(path) as arrays:
                        assert [arrays[name] for name in arrays]
                elif path.suffix == ".png":
                    with Image.open(path) as picture:
                        picture.load()
                elif path.suffix == ".pt":
                    assert read_checkpoint(path)["step"] > 0
                elif path.suffix == ".html":
                    assert path.read_text().rstrip().endswith("</html>")

    def _cut(self, stage: str, kind: str) -> tuple[int, str]:
        """Runs a stage and kills it; its exit code and what happened."""
        command = [sys.executable, "-m", f"experiments.{stage}"]
        if kind == "full disk":
            # The work is done in the process that the limit is of.
            command += ["--workers", "0"] if stage in ("train", "evaluate") else []
            size = self.chance.randrange(FAR_TOO_SMALL[stage])
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        running = subprocess.Popen(
            command,
            cwd=self.clone.folder,
            env=self.clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit if kind == "full disk" else None,
        )
        if kind == "full disk":
            said, _ = running.communicate(timeout=300)
            assert "Traceback" not in said, said
            self._check_steps(said)
            last = (said.splitlines() or ["it said nothing"])[-1]
            return running.returncode, f"at {size} bytes: exit code {running.returncode}, {last}"
        moment = self.chance.uniform(0.2, 1) * self.seconds[stage]
        started = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            running.wait(moment)
            # The first time a server had to start: moments after that would all be too late.
            self.seconds[stage] = min(self.seconds[stage], time.monotonic() - started)
        if kind == "lost worker":
            others = [process for process in workers_in(self.clone.folder) if process != running.pid]
            if others:
                with suppress(ProcessLookupError):
                    os.kill(self.chance.choice(others), signal.SIGKILL)
            said, _ = running.communicate(timeout=300)
            assert running.returncode == 0, said
            self._check_steps(said)
            return 0, f"after {moment:.1f} s: finished {'all the same' if others else 'before'}"
        known = self._steps()
        asked = time.monotonic()
        running.send_signal(signal.Signals[kind])
        said, _ = running.communicate(timeout=300)
        took = time.monotonic() - asked
        if kind == "SIGTERM":
            assert running.returncode in (143, -signal.SIGTERM, 0), said
            assert "Traceback" not in said, said
            assert took < 10, f"it took {took:.1f} s to end: {said}"
        self._check_steps(said)
        wait_until_gone(self.clone.folder)
        now = self._steps()
        assert all(now.get(name, step) >= step for name, step in known.items()), (known, now)
        return running.returncode, f"after {moment:.1f} s: exit code {running.returncode}, {took:.1f} s later"

    def _finish(self, stage: str) -> None:
        done = self.clone.run("python", "-m", f"experiments.{stage}")
        assert done.returncode == 0, f"{stage}: {done.stdout}{done.stderr}"
        self._check_steps(done.stdout)
        self.complete |= {stage}

    def _steps(self) -> dict[str, int]:
        """The step of the newest checkpoint of each training that is not done."""
        steps: dict[str, int] = {}
        for path in (self.clone.folder / "results/tiny/train").glob("*/seed-0/checkpoint*.pt"):
            with suppress(FileNotFoundError):  # renamed just now
                step = read_checkpoint(path)["step"]
                steps[path.parent.parent.name] = max(step, steps.get(path.parent.parent.name, 0))
        return steps

    def _check_steps(self, said: str) -> None:
        """Fails if a training did not go on at the newest checkpoint that was there."""
        for name, step in re.findall(r"^(\S+) seed 0: .* going on at (\d+) of", said, re.MULTILINE):
            self.resumed.append(int(step))
            assert int(step) >= self.newest.get(name, 0), (name, step, self.newest)
        self.newest = self._steps()

    def _remove(self, stage: str) -> None:
        if stage == "train":
            self.newest = {}
        for name in OUTPUTS[stage]:
            path = self.clone.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Clone(Path(folder) / "clone"), random.Random(arguments.seed))
        expected = soak.undisturbed()
        for number in range(arguments.kills):
            print(soak.kill(number), flush=True)
        assert_same(soak.finish(), expected)
    print(f"{soak.killed.total()} kills: nothing half-written, {len(expected)} files equal in every byte")
    for (stage, kind), times in sorted(soak.killed.items()):
        print(f"{stage:8} {kind:11} {times}")
    print(f"trainings went on {len(soak.resumed)} times, each at its newest checkpoint")


if __name__ == "__main__":
    main()

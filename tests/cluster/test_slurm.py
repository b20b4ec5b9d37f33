"""Trainings through a real SLURM.

It is started, and found, by

    tests/cluster/slurm.sh start /tmp/slurm
    SLURM_CONF=/tmp/slurm/slurm.conf python -m pytest tests/cluster
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from clones import Clone, assert_same
from conftest import ROOT

from experiments.training.checkpoints import read_checkpoint

KEY = "gun-small"
CLUSTER = ("python", "-m", "experiments.cluster", "train", "--gpus-per-job", "0")


def _nodes() -> str:
    """Nodes of the SLURM that SLURM_CONF names; empty if there is none."""
    if not os.environ.get("SLURM_CONF"):
        return ""
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not _nodes(), reason="needs a SLURM, which tests/cluster/slurm.sh starts as root"),
]


def wait_for(what: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def printed(clone: Clone) -> str:
    """What the jobs of the queue have said."""
    logs = sorted((clone.folder / ".cache/cluster/train").glob("*_log.*"))
    return "\n".join(path.read_text() for path in logs)


def long_training(folder: Path) -> Clone:
    """A clone with one training, long enough to be interrupted."""
    clone = Clone(folder)
    clone.params["experiments"] = {KEY: clone.params["experiments"][KEY]}
    clone.profile["recipe"]["steps"] = 200
    clone.profile["training"] |= {"checkpoint_every": 100_000, "log_every": 5}
    clone.write()
    assert clone.run("python", "-m", "experiments.prepare").returncode == 0
    return clone


def train_here(clone: Clone) -> dict[str, bytes]:
    done = clone.run("python", "-m", "experiments.train")
    assert done.returncode == 0, done.stderr
    return clone.generated()


def preempt(clone: Clone, job: str) -> int:
    """Sends SIGUSR1 as an administrator would, once the training runs; the step of its checkpoint."""
    folder = clone.folder / "results/tiny/train" / KEY / "seed-0"
    wait_for(lambda: (folder / "history.csv").exists())
    assert not (folder / "checkpoint.pt").exists()
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(lambda: (folder / "checkpoint.pt").exists(), 30)
    return int(read_checkpoint(folder / "checkpoint.pt")["step"])


def test_an_array_of_8_shards_trains_what_a_local_run_trains(tmp_path: Path) -> None:
    """Every training of GUN of the profile ``quick``, in the same bytes."""
    clones = []
    for name in ("queue", "here"):
        clone = Clone(tmp_path / name)
        clone.params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"profile": "quick", "claims": {}}
        experiments = clone.params["experiments"]
        clone.params["experiments"] = {k: v for k, v in experiments.items() if v["paper"] == "gun"}
        clone.write()
        assert clone.run("python", "-m", "experiments.prepare").returncode == 0
        clones.append(clone)
    done = clones[0].run(*CLUSTER, "--array", "8", "--hours", "1")
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert "cluster: 8 jobs of SLURM" in done.stdout
    assert "nothing to do" in clones[0].run("python", "-m", "experiments.train").stdout
    assert_same(clones[0].generated(), train_here(clones[1]))


def test_a_preempted_job_is_queued_again_and_loses_no_step(tmp_path: Path) -> None:
    clone = long_training(tmp_path / "queue")
    running = subprocess.Popen(
        [*CLUSTER, "--array", "1"], cwd=clone.folder, env=clone.environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    job = re.search(r"of SLURM, (\d+)", running.stdout.readline())
    assert job is not None
    step = preempt(clone, job[1])
    assert 0 < step < 200
    said, _ = running.communicate(timeout=300)
    print(said, printed(clone))
    assert running.returncode == 0
    assert f"200 steps, going on at {step} of" in printed(clone)
    assert_same(clone.generated(), train_here(long_training(tmp_path / "here")))


def test_the_script_of_the_readme_does_too(tmp_path: Path) -> None:
    block = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    here = "--array=1-2 --cpus-per-task=1"
    script = block[1].replace("--array=1-64 --gpus-per-node=1 --cpus-per-task=9", here)
    assert here in script
    assert len(script.splitlines()) <= 10
    clone = long_training(tmp_path / "queue")
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--output=%A_%a.txt"],
        input=script, cwd=clone.folder, env=clone.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    step = preempt(clone, submitted.stdout.strip())
    assert 0 < step < 200
    wait_for(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout, 300)
    said = "\n".join(path.read_text() for path in clone.folder.glob("*_*.txt"))
    assert f"200 steps, going on at {step} of" in said, said
    assert_same(clone.generated(), train_here(long_training(tmp_path / "here")))

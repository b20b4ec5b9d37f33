"""The command line of a stage: arguments, and one clear line when something is wrong."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable

from experiments.config.strict import ConfigError
from experiments.datasets.base import DataError
from experiments.running.storage import StorageError


class StageError(Exception):
    """A stage cannot go on; the message says why and what to do, in one line."""


def parser(stage: str, description: str | None) -> argparse.ArgumentParser:
    """An argument parser that is called as the stage is."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{stage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(stage: str, main: Callable[[], None]) -> None:
    """Runs a stage; an expected error is one line on standard error and exit code 1."""
    # cuBLAS reads this when it starts; without it deterministic matrix products are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not gc.isenabled():
        # Ends what the package's __init__ began: what the imports made is never looked at again.
        gc.freeze()
        gc.enable()
    try:
        main()
    except (ConfigError, DataError, StorageError, StageError) as error:
        sys.exit(f"{stage}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(f"{stage}: interrupted")

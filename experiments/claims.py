"""Tests every claim of params.yaml and gives it a verdict. So far params.yaml has none."""

from __future__ import annotations

from experiments.config.params import load_params
from experiments.running import command, storage

COLUMNS = (
    "claim", "paper", "metric", "better", "worse", "seeds", "images", "difference", "low", "high", "p",
    "verdict", "published", "source",
)  # fmt: skip


def main() -> None:
    command.parser("claims", __doc__).parse_args()
    params = load_params()
    storage.write_text(params.paths.claims, ",".join(COLUMNS) + "\n")


if __name__ == "__main__":
    command.run("claims", main)

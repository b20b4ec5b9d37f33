"""One row per experiment: what was measured, and what is published for the row that it mirrors."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting import published
from experiments.running import paths
from experiments.running.storage import StorageError, read_csv
from experiments.samples.identity import identities_or_reason
from experiments.scoring.scores import read_scores

COMPLEXITY_COLUMNS = {
    "experiment", "model", "backbone", "parameters", "macs", "macs_check", "height", "width", "num_classes",
    "uncounted",
}  # fmt: skip
SPEED_COLUMNS = {
    "experiment", "device", "precision", "mode", "batch", "height", "width", "latency_ms_median",
    "latency_ms_p95", "fps", "peak_memory_mb", "note", "repetitions",
}  # fmt: skip


def read_complexity() -> pd.DataFrame:
    """``results/complexity.csv`` by experiment; empty where nothing is counted.

    Raises:
        StorageError: the file is broken.
    """
    return _read_optional(paths.COMPLEXITY, COMPLEXITY_COLUMNS, "complexity").set_index("experiment")


def read_speed(params: Params) -> pd.DataFrame:
    """``speed.csv`` of the profile; empty where nothing is timed.

    Raises:
        StorageError: the file is broken.
    """
    return _read_optional(params.paths.speed, SPEED_COLUMNS, "speed")


def valid_scores(params: Params) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The scores that belong to the present settings, and why the other experiments have none, by key."""
    identities, problem = identities_or_reason(params.runs(), params.seeds)
    scores: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for key in params.experiments:
        found = read_scores(key, params.seeds, identities, params.paths.scores(key))
        if isinstance(found, str):
            reasons[key] = (
                found if identities is not None or not params.paths.scores(key).is_file() else problem
            )
        else:
            scores[key] = found
    return scores, reasons


def summarise(
    params: Params, scores: dict[str, dict[str, Any]], reasons: dict[str, str], complexity: pd.DataFrame
) -> pd.DataFrame:
    """The summary. Scores are in per cent, parameters in millions, multiply-accumulates in thousand millions.

    Args:
        params: of the run.
        scores: by experiment; those of an experiment that shares them are said to be another's.
        reasons: why an experiment has no scores.
        complexity: by experiment.
    """
    numbers = published.wide(published.load()).set_index(["paper", "table", "row"]).to_dict("index")
    rows = []
    for key, experiment in params.experiments.items():
        own = scores.get(key, {})
        shared = own.get("same_scores_as") or ""
        shown = {} if shared else own
        counts: dict[Any, Any] = complexity.loc[key].to_dict() if key in complexity.index else {}
        stated = numbers.get((experiment.paper, experiment.table, experiment.row), {})
        rows.append({
            "experiment": key,
            "paper": experiment.paper,
            "table": experiment.table,
            "row": experiment.row,
            "profile": params.profile,
            "dataset": own.get("dataset", ""),
            "split": own.get("split", ""),
            "seeds": len(own.get("seeds", ())),
            "same_scores_as": shared,
            "measured_miou": _percent(shown.get("miou")),
            "measured_miou_std": _percent(shown.get("miou_std")),
            "measured_pixel_accuracy": _percent(shown.get("pixel_accuracy")),
            "not_measured_because": reasons.get(key, ""),
            # What the scores are a function of: whoever reads this file sees when they have changed.
            "digest": " ".join(seed["digest"][:12] for seed in own.get("seeds", ())),
            "measured_parameters_m": _scaled(counts.get("parameters"), 1e6),
            "measured_macs_g": _scaled(counts.get("macs"), 1e9),
            "measured_macs_height": counts.get("height"),
            "measured_macs_width": counts.get("width"),
            "published_miou": stated.get("miou"),
            "published_miou_ms": stated.get("miou_ms"),
            "published_parameters_m": stated.get("parameters"),
            "published_macs_g": stated.get("macs"),
            "published_fps": stated.get("fps"),
            "published_source": stated.get("source", ""),
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"measured_macs_height": "Int64", "measured_macs_width": "Int64"})


def _read_optional(path: Any, columns: set[str], stage: str) -> pd.DataFrame:
    remedy = f"run 'python -m experiments.{stage}'"
    try:
        return read_csv(path, columns, f"remove it and {remedy}")
    except StorageError:
        if path.is_file() and path.stat().st_size > 1:
            raise
        return pd.DataFrame(columns=sorted(columns))


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _scaled(count: float | None, unit: float) -> float | None:
    return None if count is None else round(count / unit, 6)

"""One row per experiment: what was measured, and what is published for the row that it mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.measuring.jobs import counted_rows, timed_rows
from experiments.reporting import published
from experiments.samples.identity import identities_or_reason
from experiments.scoring.scores import read_released_scores, read_scores
from experiments.scoring.slices import released_digest


def complexity(params: Params) -> pd.DataFrame:
    """What is counted of the present networks, by experiment.

    Raises:
        StorageError: a file of counts is broken.
    """
    columns = [
        "experiment", "backbone", "parameters", "macs", "macs_check", "height", "width", "num_classes",
        "sampling_macs", "activations", "parameter_mb", "macs_as_published", "as_published",
    ]  # fmt: skip
    return pd.DataFrame(counted_rows(params)).reindex(columns=columns).set_index("experiment")


def speed(params: Params) -> pd.DataFrame:
    """What is timed of the present networks with the present settings on this machine.

    Raises:
        StorageError: a file of timings is broken.
    """
    columns = [
        "experiment", "device", "precision", "mode", "batch", "height", "width", "latency_ms_median",
        "latency_ms_p95", "fps", "peak_memory_mb", "latency_ms_low", "latency_ms_high", "end_to_end",
        "repetitions", "macs", "traffic_mb", "compute_share", "bandwidth_share", "launch_bound", "note",
    ]  # fmt: skip
    return pd.DataFrame(timed_rows(params)).reindex(columns=columns)


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
    params: Params,
    scores: Mapping[str, dict[str, Any]],
    reasons: Mapping[str, str],
    counted: pd.DataFrame,
) -> pd.DataFrame:
    """The summary. Scores are in per cent, parameters in millions, multiply-accumulates in thousand millions.

    Args:
        params: of the run.
        scores: by experiment; those of an experiment that shares them are said to be another's.
        reasons: why an experiment has no scores.
        counted: by experiment, what ``complexity`` gives.
    """
    numbers = published.wide(published.load()).set_index(["paper", "table", "row"]).to_dict("index")
    rows = []
    for key, experiment in params.experiments.items():
        own = scores.get(key, {})
        shared = own.get("same_scores_as") or ""
        shown = {} if shared else own
        counts: dict[Any, Any] = counted.loc[key].to_dict() if key in counted.index else {}
        found = read_released_scores(params.run(key), released_digest(params.run(key)))
        released = found if isinstance(found, dict) else {}
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
            "measured_miou_ms": _percent(shown.get("miou_ms")),
            "measured_pixel_accuracy": _percent(shown.get("pixel_accuracy")),
            "not_measured_because": reasons.get(key, ""),
            "released_not_shown_because": found if isinstance(found, str) else "",
            # What the scores are a function of: whoever reads this file sees when they have changed.
            "digest": " ".join(seed["digest"][:12] for seed in own.get("seeds", ())),
            "measured_parameters_m": _scaled(counts.get("parameters"), 1e6),
            "measured_macs_g": _scaled(counts.get("macs"), 1e9),
            "measured_macs_height": counts.get("height"),
            "measured_macs_width": counts.get("width"),
            "released_miou": _percent(released.get("miou")),
            "released_miou_ms": _percent(released.get("miou_ms")),
            "released_split": released.get("split", ""),
            "published_miou": stated.get("miou"),
            "published_miou_ms": stated.get("miou_ms"),
            "published_parameters_m": stated.get("parameters"),
            "published_macs_g": stated.get("macs"),
            "published_fps": stated.get("fps"),
            "published_split": stated.get("split", ""),
            "published_source": stated.get("source", ""),
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"measured_macs_height": "Int64", "measured_macs_width": "Int64"})


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _scaled(count: float | None, unit: float) -> float | None:
    return None if count is None else round(count / unit, 6)

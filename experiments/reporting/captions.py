"""What a reader has to know of a number to use it: in words, for tables, figures and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.config.params import Params


def measured_on(params: Params, split: str = "val") -> str:
    """Where scores of this run come from, short enough for the head of a column.

    Args:
        params: of the run.
        split: the released split that is scored.
    """
    data = params.active.stand_in
    return f"{params.profile}: {data} {split}" if data else f"{params.profile}: {split}"


def worth(params: Params) -> str:
    """What this run's scores are, and what they may be used for."""
    profile = params.active
    data = profile.stand_in or "the papers' own data sets"
    seeds = f"seed {params.seeds[0]}" if len(params.seeds) == 1 else f"{len(params.seeds)} seeds"
    line = f"Profile '{params.profile}', {data}, {seeds}."
    if profile.scores == "check":
        line += (
            " A check that everything runs: its scores say nothing about the papers and are not comparable"
        )
        line += " with published numbers."
    elif profile.scores == "stand-in":
        line += (
            " Another data set and a shorter training than the published numbers: not comparable with them."
        )
    return line


def counted(number: int, thing: str) -> str:
    """A number of things: ``1 seed``, ``5 seeds``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(height_and_width: Sequence[int]) -> str:
    """Height and width as ``512 x 1024``."""
    return " x ".join(map(str, height_and_width))


def exceptions(known: Mapping[str, str], keys: Iterable[str]) -> str:
    """Which of some experiments a profile trains with settings of their own, in a sentence; empty if none.

    Args:
        known: what is different, by experiment.
        keys: the experiments that are shown.
    """
    alike: dict[str, list[str]] = {}
    for key in keys:
        if key in known:
            alike.setdefault(known[key], []).append(key)
    said = [f"{joined(named)} ({exception})" for exception, named in alike.items()]
    return f" With settings of their own: {', '.join(said)}." if said else ""


def missing(reasons: Iterable[tuple[str, str]]) -> str:
    """Which experiments have no score, and why, in a sentence; empty if all have one.

    Args:
        reasons: key and reason of each experiment without a score.
    """
    by_reason: dict[str, list[str]] = {}
    for key, reason in reasons:
        by_reason.setdefault(reason.replace(key, "KEY"), []).append(key)
    parts = [f"{joined(keys)}: {reason}" for reason, keys in by_reason.items()]
    return f"Not shown: {'; '.join(parts)}." if parts else ""


def joined(words: Iterable[str]) -> str:
    """Words as a list in a sentence; of many, the first ones and how many more."""
    found = list(dict.fromkeys(words))
    if len(found) > 4:
        return f"{', '.join(found[:3])} and {len(found) - 3} more"
    return ", ".join(found)

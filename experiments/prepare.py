"""Checks every pair of the active profile's data sets and writes what training reads.

For each data set ``data/prepared/<profile>/<name>/`` holds the labels as class indices, the images where
they are generated or resized, and ``manifest.json``. A data set whose files and settings are as they were
is not read again; --again reads it all the same, and notices what size and time of a file do not show.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import datasets
from experiments.config.params import Params, load_params
from experiments.datasets.base import Split
from experiments.datasets.preparation import files_digest, prepare, settings_digest
from experiments.running import command, locks, paths, stopping, storage
from experiments.running.errors import StageError


def main() -> None:
    parser = command.parser("prepare", __doc__)
    parser.add_argument("--again", action="store_true", help="read everything, whatever has changed")
    again = parser.parse_args().again
    # Whether the models' options are right is of interest here only before data are read for a long time.
    params = load_params(models=False)
    for name in params.active.datasets:
        _prepare(params, name, again)


def _prepare(params: Params, name: str, again: bool) -> None:
    options, size = params.active.datasets[name], params.active.image_size
    folder = params.paths.prepared / name
    made_from = {
        "settings": settings_digest(name, options, size),
        "files": files_digest(datasets.create(name, options)),
    }
    storage.clear_leftovers(folder)  # such as the data before, of who was killed while they were removed
    before = _manifest(folder / "manifest.json")
    if not again and before.get("made_from") == made_from:
        _check_batches(params, name, before["splits"]["val"]["samples"])
        print(f"prepare: {name} is as it was")
        return
    busy = locks.live(params.paths.locks)
    if busy and folder.exists():
        raise StageError(
            f"'{name}' has changed, but {busy[0]} is working with what was prepared before; wait for it, or "
            "end it"
        )
    params.check_models(paths.PARAMS)
    storage.clear_partials(folder.parent)
    with storage.folder(folder) as new, tqdm(unit="image", mininterval=1, disable=None) as bar:

        def show(split: Split, done: int, of: int) -> None:
            bar.set_description(f"prepare {name} {split}", refresh=False)
            bar.total = of
            bar.update(done - bar.n)
            if stopping.requested():
                raise stopping.Stopped(f"after {done} of {of} images of {split}")

        manifest = prepare(name, options, new, size, show)
        _check_batches(params, name, manifest["splits"]["val"]["samples"])
        storage.write_json(new / "manifest.json", {"made_from": made_from, **manifest})
    counts = ", ".join(
        f"{len(split['samples'])} of {role} ({split['released']})"
        for role, split in manifest["splits"].items()
    )
    print(f"prepare: {name}: {counts}, {len(manifest['classes'])} classes", file=sys.stdout)


def _check_batches(params: Params, name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Refuses validation images of several sizes where they are scored in batches: before any training."""
    first, batch = samples[0], params.active.evaluation.batch_size
    for other in samples[1:] if batch > 1 else ():
        if (first["height"], first["width"]) != (other["height"], other["width"]):
            sizes = (f"'{each['name']}' has {each['height']} x {each['width']}" for each in (first, other))
            raise StageError(
                f"profiles.{params.profile}.evaluation.batch_size is {batch}, and images of one batch have "
                f"one size, but of the validation images of '{name}' {', '.join(sizes)} (height x width); "
                "set it to 1"
            )


def _manifest(path: Path) -> dict[str, Any]:
    """What was prepared before; empty if nothing was, or not by this code."""
    try:
        found = storage.read_json(path, "")
    except storage.StorageError:
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    command.run("prepare", main)

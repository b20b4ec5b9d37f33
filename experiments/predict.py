"""Predicts pictures of one's own with a trained network, or with weights that a paper's authors released.

WHAT is an experiment of params.yaml, whose training under the active profile is used, or the folder of a
training; nothing but this folder is needed. Writes ``labels/`` (class indices), ``colours/`` and
``overlays/`` below the output folder, under the pictures' names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.config.params import Params, load_params
from experiments.config.strict import ConfigError
from experiments.running import command
from experiments.samples.identity import Identities
from experiments.training.folder import TrainingFolder, Trainings


def main() -> None:
    arguments = _parser().parse_args()
    # Here, as torch takes seconds to import and a wrong argument is told before.
    from experiments.running.devices import open_devices
    from experiments.scoring import prediction

    images = prediction.find_images(arguments.images)
    if arguments.checkpoint is not None:
        predictor = prediction.of_checkpoint(load_params(), arguments.what, arguments.checkpoint)
    else:
        predictor = prediction.of_training_folder(_training(arguments.what, arguments.seed))
    protocol = predictor.protocol(arguments.protocol)
    out: Path = arguments.out
    if arguments.purpose:
        save = prediction.save_for_cityscapes(out, predictor.classes, list(images))
    else:
        save = prediction.save_pictures(out, predictor.classes)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file; expected a folder")
    if out.is_dir() and any(out.iterdir()) and not arguments.overwrite:
        raise ConfigError(f"--out: {out} holds files; take a new folder, or add --overwrite")
    with open_devices() as devices:
        failed = prediction.predict_images(predictor, protocol, devices, images, save)
    for reason in failed.values():
        print(f"predict: {reason}", file=sys.stderr)
    print(f"predict: {len(images) - len(failed)} of {len(images)} pictures, in {out}")
    if failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("predict", __doc__)
    parser.add_argument("what", metavar="WHAT", help="an experiment of params.yaml, or a training's folder")
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights that the authors released")
    parser.add_argument("--seed", type=int, metavar="N", help="of the training; the first of params.yaml")
    parser.add_argument(
        "--protocol", choices=("single", "multi"), default="single", help="scales and flips; default: single"
    )
    parser.add_argument(
        "--for", dest="purpose", choices=("cityscapes-server",), help="label ids under the server's names"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    return parser


def _training(what: str, seed: int | None) -> TrainingFolder:
    """The training that is meant by an experiment's key, or by a folder.

    Raises:
        ConfigError: there is no such experiment, or it is not trained.
    """
    given = TrainingFolder(Path(what))
    if given.about.is_file():
        if seed is not None:
            raise ConfigError(f"--seed {seed}: {what} is the training of one seed; leave --seed out")
        return given
    params = load_params()
    if given.path.is_dir() and what not in params.experiments:
        raise ConfigError(
            f"{what}: holds no training; expected a folder with a {given.about.name}, say "
            f"{params.paths.training('KEY', params.seeds[0])}, or an experiment's key"
        )
    run = params.run(what)
    seed = params.seeds[0] if seed is None else seed
    own = TrainingFolder(run.paths.training(what, seed))
    if own.about.is_file():
        return own
    shared = _shared_training(params, what, seed)
    if shared is None:
        raise ConfigError(
            f"experiment '{what}' seed {seed} is not trained under profile '{params.profile}'; run "
            f"'python -m experiments.train {command.selection(what, seed, params.seeds)}' first"
        )
    return shared


def _shared_training(params: Params, key: str, seed: int) -> TrainingFolder | None:
    """The training of another experiment that is this one's as well."""
    identities = Identities(params.runs(), [seed])
    return Trainings(params.paths.trainings).find(identities.of(key, seed).training)


if __name__ == "__main__":
    command.run("predict", main, "the same command with --overwrite begins again")

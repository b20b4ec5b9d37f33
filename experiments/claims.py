"""Gives every claim of params.yaml a verdict, from the scores, counts and timings of this run.

Writes ``results/<profile>/claims.csv``. The README says how a verdict comes about.
"""

from __future__ import annotations

from collections import Counter

from experiments.config.params import load_params
from experiments.running import command, jobs, paths, storage


def main() -> None:
    parser = command.parser("claims", __doc__)
    parser.add_argument(
        "--plan", action="store_true", help="say how many seeds and hours would settle each open claim"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--keep",
        metavar="NAME",
        help=f"keep this run's results in {paths.REFERENCE}/NAME, beside what it has of the same settings",
    )
    which.add_argument(
        "--from", dest="reference", metavar="NAME",
        help=f"compute the verdicts of {paths.REFERENCE}/NAME again from its counts alone",
    )  # fmt: skip
    arguments = parser.parse_args()
    params = load_params()
    # Here, as importing scipy and pandas takes longer than finding out that the command line is wrong.
    from experiments.reporting import keeping, measurements, planning, references, verdicts

    if arguments.reference is not None:
        reference = references.load(arguments.reference, params)
        found, path = reference.found, reference.folder / "claims.csv"
    else:
        found, path = measurements.present(params), params.paths.claims
        if arguments.keep is not None:
            kept = keeping.keep(arguments.keep, params, found, params.paths.summary)
            print(f"claims: {kept.reference.folder}: {jobs.count(len(kept.new), 'experiment')} kept")
            if kept.staying:
                print(f"claims: in it already, and of the present settings: {', '.join(kept.staying)}")
            if kept.leaving:
                print(
                    f"claims: no longer in it: {', '.join(kept.leaving)}; their settings, data or code are "
                    "others now, or they share the scores of one that was kept, and were not scored with it"
                )
        elif not arguments.plan and verdicts.is_current(params, found):
            for kept_file in (path, params.paths.claims_digest):  # of who was killed and had written the same
                storage.clear_leftovers(kept_file)
            print(f"claims: {path} is as it was")
            return
    judgements = verdicts.judge(params.claims, found, params)
    verdicts.write(path, judgements)
    if arguments.reference is not None:
        references.write_readme(params)
    else:
        verdicts.remember(params, found)
    tally = Counter(judgement.verdict for judgement in judgements)
    said = ", ".join(f"{count} {verdict}" for verdict, count in tally.items()) or "none"
    print(f"claims: {jobs.count(len(judgements), 'claim')}: {said}; {path}")
    if arguments.plan:
        steps = planning.plan(judgements, found)
        print("\n".join(f"claims: {line}" for line in planning.lines(steps, len(judgements))))


if __name__ == "__main__":
    command.run("claims", main)

"""Arms of a comparison: runs that differ in their seed alone, measured on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certood.analysis.reporting.runs import Run
from certood.errors import CertoodError, RunDirectoryError
from certood.runs.kinds import changed_inputs, kind_of


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe by seed, and the score by which all of them are compared.

    A run that no recipe describes is an arm by itself, with the seed None.
    """

    name: str
    score: str
    runs: Mapping[int | None, Run]

    @property
    def seeds(self) -> list[int | None]:
        """The seeds in ascending order."""
        return sorted(self.runs, key=lambda seed: -1 if seed is None else seed)

    def benchmark(self, seed: int | None) -> Mapping[str, Any]:
        """The clean benchmark of the run of a seed, by the arm's score."""
        evaluation = self.runs[seed].evaluation
        assert evaluation is not None
        found: Mapping[str, Any] = evaluation["scores"][self.score]
        return found


def arms_of(runs: Sequence[Run], score: str | None = None) -> list[Arm]:
    """The arms of evaluated runs, in the order in which they are given; with `score` all are compared by that one.

    Without it each is compared by the score of its own detectors. Raises RunDirectoryError where a run has no evaluation of
    its checkpoint or not by that score, where runs were measured on different images, and where a seed of an arm is given twice.
    """
    for run in runs:
        if run.evaluation is None:
            why = "; ".join(run.stale) or "it was never evaluated"
            raise RunDirectoryError(f"{run.path} has no evaluation to compare ({why}): certood evaluate {run.path}")
        if not run.benchmark["sets"]:
            raise RunDirectoryError(
                f"{run.path} was evaluated on no OOD set, so there is nothing to compare: certood evaluate {run.path} --ood SET"
            )
    _require_same_images(runs)
    groups: list[tuple[object, list[Run]]] = []
    for run in runs:
        # A run without a recipe may be anything: it stands alone.
        kind = kind_of(run.recipe) or run.path
        members = next((members for known, members in groups if known == kind), None)
        if members is None:
            groups.append((kind, [run]))
        else:
            members.append(run)
    names = shared_names([members for _, members in groups])
    return [_arm(name, members, score) for name, (_, members) in zip(names, groups, strict=True)]


def _require_same_images(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.benchmark_images == first.benchmark_images:
            continue
        one, other = list(first.benchmark["sets"]), list(run.benchmark["sets"])
        if sorted(one) != sorted(other):
            raise RunDirectoryError(
                f"{first.path} was evaluated on {', '.join(one)}, and {run.path} on {', '.join(other)}, which do not compare: "
                "evaluate both on the same sets (certood evaluate RUN --ood SET ...)"
            )
        raise RunDirectoryError(
            f"{first.path} and {run.path} were evaluated on different images of the same names (their hashes differ), which do "
            "not compare: evaluate both again on the same files, of networks trained with the same data.split_seed"
        )


def _arm(name: str, members: Sequence[Run], score: str | None) -> Arm:
    runs: dict[int | None, Run] = {}
    scores = set()
    for run in members:
        assert run.evaluation is not None
        seed = run.recipe.get("run", {}).get("seed")
        if seed in runs:
            raise RunDirectoryError(
                f"{runs[seed].path} and {run.path} are the same recipe with the same seed, which counts once: leave one out"
            )
        changed = changed_inputs(members[0].recipe, run.recipe)
        if changed:
            raise RunDirectoryError(
                f"{members[0].path} and {run.path} are one recipe, but were trained with different files under the same names "
                f"({', '.join(changed)}), which do not count as seeds of each other: leave one out"
            )
        runs[seed] = run
        chosen = score or str(run.evaluation["score"])
        if chosen not in run.evaluation["scores"]:
            measured = ", ".join(run.evaluation["scores"])
            raise CertoodError(
                f"{run.path} was not evaluated by {'the' if score else 'its own'} score {chosen!r}: expected one of {measured}"
                + ("" if score else f" as --score, or evaluate it again (certood evaluate {run.path})")
            )
        scores.add(chosen)
    if len(scores) > 1:
        raise CertoodError(
            f"the runs of {name} have different scores of their own ({', '.join(sorted(scores))}): choose one with --score"
        )
    return Arm(name, scores.pop(), runs)


def shared_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What arms are called, no two alike: their folders' name without the seed, or the recipe's; where two share it, the name of
    the first run, or its path."""
    names = [_name(members) for members in groups]
    for other in (_of_first, lambda members: members[0].path.as_posix()):
        names = [
            name if names.count(name) == 1 else other(members) for name, members in zip(names, groups, strict=True)
        ]
    return names


def _name(members: Sequence[Run]) -> str:
    stems = {run.label.removesuffix(f"-{run.recipe.get('run', {}).get('seed')}") for run in members}
    return stems.pop() if len(stems) == 1 else str(members[0].recipe.get("recipe", members[0].name))


def _of_first(members: Sequence[Run]) -> str:
    return members[0].name if len(members) == 1 else f"{members[0].name} and {len(members) - 1} more"

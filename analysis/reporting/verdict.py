"""The paragraph at the top of a report: which run detects best, which is certified furthest, whether they are the same."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from certood.analysis.reporting.columns import NORM_NAMES
from certood.analysis.reporting.kinds import kinds_of_training
from certood.analysis.reporting.runs import Run

RATE, RADIUS = ".1f", ".4f"


def verdict(runs: Sequence[Run]) -> list[str]:
    """Its sentences. Radii in different norms are never compared; runs that differ in the seed alone count by their mean."""
    kinds = kinds_of_training(runs)
    measured = {kind.label: kind for kind in kinds if kind.first.benchmark.get("mean")}
    rates = {name: fmean(100 * run.benchmark["mean"]["fpr95"] for run in kind.runs) for name, kind in measured.items()}
    sentences = []
    unlike = _unlike([_benchmarked(kind.first) for kind in measured.values()], "rates")
    if unlike:
        sentences.append(unlike)
    elif rates:
        sentences.append(f"Lowest mean FPR95: {_extremes(rates, RATE, ' %', lowest=True)}.")
    for norm in dict.fromkeys(str(run.norm) for run in runs if run.certified):
        certified = {kind.label: kind for kind in kinds if kind.first.certified and kind.first.norm == norm}
        medians = {name: [_median(run) for run in kind.runs] for name, kind in certified.items()}
        known = {name: [radius for radius in radii if radius is not None] for name, radii in medians.items()}
        found = {name: fmean(radii) for name, radii in known.items() if len(radii) == len(medians[name])}
        if not found:
            continue
        apart = _unlike([_certified(certified[name].first) for name in found], f"radii in {NORM_NAMES[norm]}")
        if apart:
            sentences.append(apart)
            continue
        place = f"in {NORM_NAMES[norm]}, pixels of the range 0 to 1"
        sentences.append(
            f"Largest median certified radius of ID images ({place}): {_extremes(found, RADIUS, '', lowest=False)}."
        )
        if not unlike:
            sentences += _compared({name: rate for name, rate in rates.items() if name in found}, found)
    if any(run.smoothed for run in runs):
        sentences.append("Radii of smoothed detectors are probabilistic, and are listed apart.")
    sentences.append(_basis(runs))
    return sentences


def _benchmarked(run: Run) -> tuple[object, ...]:
    """What two benchmarks must share for their rates to be ranked."""
    return *run.benchmark_images, run.score


def _certified(run: Run) -> tuple[object, ...]:
    """What two certifications must share for their radii to be ranked."""
    assert run.certification is not None
    sets = sorted((name, entry["kind"], entry["n"]) for name, entry in run.certification["sets"].items())
    how = run.certification.get("settings", {})
    effort = tuple(how.get(key) for key in ("engine", "parts", "timeout"))
    asked = (run.certification.get("score"), run.certification.get("method"), *effort)
    return tuple(sets), str(run.certification.get("image_sets")), *asked


def _unlike(measured: Sequence[object], what: str) -> str:
    if len(set(measured)) < 2:
        return ""
    return f"The {what} of these runs are not ranked: they were measured on different images, or by different scores or methods."


def _median(run: Run) -> float | None:
    """The median certified radius of the run's only ID set; None where it has none or several."""
    assert run.certification is not None
    found = [
        entry.get("median_radius_certified") for entry in run.certification["sets"].values() if entry["kind"] == "id"
    ]
    return None if len(found) != 1 or found[0] is None else float(found[0])


def _best(values: Mapping[str, float], form: str, *, lowest: bool) -> list[str]:
    """The runs with the extreme value as it reads: what differs in digits that nobody sees is no difference."""
    target = f"{min(values.values()) if lowest else max(values.values()):{form}}"
    return [name for name, value in values.items() if f"{value:{form}}" == target]


def _extremes(values: Mapping[str, float], form: str, unit: str, *, lowest: bool) -> str:
    best, worst = _best(values, form, lowest=lowest), _best(values, form, lowest=not lowest)
    text = f"{_joined(best)} with {values[best[0]]:{form}}{unit}"
    if len(best) < len(values):
        text += f" ({'highest' if lowest else 'smallest'}: {_joined(worst)} with {values[worst[0]]:{form}}{unit})"
    return text


def _compared(rates: Mapping[str, float], radii: Mapping[str, float]) -> list[str]:
    if len(rates) < 2:
        return []
    detects, holds = set(_best(rates, RATE, lowest=True)), set(_best(radii, RADIUS, lowest=False))
    if detects & holds:
        return [f"So {_joined(sorted(detects & holds))} both detects best and is certified furthest."]
    return ["So the run that detects best is not the one that is certified furthest."]


def _basis(runs: Sequence[Run]) -> str:
    certified = [run for run in runs if run.certification is not None]
    if not certified:
        return "None of these runs has been certified (certood certify RUN), so that nothing is guaranteed."
    images = sum(len(run.certificates) for run in certified)
    text = f"This rests on {_count(len(runs), 'run')}, {len(certified)} of them certified, and on {images} certified images."
    if len(certified) > 1:
        text += " A difference between single runs may be the seed's; it ranks no methods."
    return text


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _joined(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]

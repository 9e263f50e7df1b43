"""Where the numbers of a run come from: hashes, versions, and the commands that make it again."""

import shlex
from collections.abc import Mapping
from typing import Any

import tomli_w

from certood.analysis.reporting.runs import Run


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, as (name, value): recipe, seed, network, versions, effort; "not known" where the run does not say."""
    recipe = run.recipe
    record: Mapping[str, Any] = recipe.get("record", {})
    found = [("folder", run.path.as_posix())]
    if recipe:
        found += [
            ("recipe", f"{recipe.get('recipe', 'not known')}, seed {recipe.get('run', {}).get('seed', 'not known')}"),
            ("network", str(recipe.get("model", {}).get("architecture", "not known"))),
            ("trained with", _versions({key: record[key] for key in ("certood", "torch", "python") if key in record})),
        ]
    if run.certification is not None:
        settings = run.certification["settings"]
        found.append(("certified with", _versions(run.certification.get("versions", {}))))
        if run.smoothed:
            noise = settings["smoothing"]
            found.append(("smoothing", f"σ = {noise['sigma']:g}, {noise['samples']} samples per image"))
        else:
            found.append(
                (
                    "attacks",
                    f"{settings['attack_steps']} steps, {settings['restarts']} restarts{_second(run.certification)}; "
                    f"{settings['samples']} sampled gradients a ball",
                )
            )
        limit = run.settings.get("limit")
        found.append(
            ("images", "all of each set" if limit is None else f"at most {limit} of each set, spread evenly over it")
        )
    return found


def _second(certification: Mapping[str, Any]) -> str:
    """A second attack, and for how many images it is the nearer one."""
    name = certification["settings"].get("second_attack")
    nearer = certification.get("nearest_attack", {})
    return "" if name is None else f", and {name}, nearer for {nearer.get(name, 0)} of {sum(nearer.values())} images"


def hashes(run: Run) -> dict[str, str]:
    """SHA-256 of every image set that was trained on, evaluated or certified."""
    trained: Mapping[str, str] = run.recipe.get("record", {}).get("sha256", {})
    certified: Mapping[str, str] = run.settings.get("sets", {})
    known = set(trained.values())
    return {**trained, **{f"{name} (certified)": one for name, one in certified.items() if one not in known}}


def recipe_text(run: Run) -> str:
    """The resolved recipe as TOML, without the record of what was found; empty where there is none."""
    return tomli_w.dumps({key: value for key, value in run.recipe.items() if key != "record"}) if run.recipe else ""


def commands(run: Run) -> list[str]:
    """The commands that make the run again, in a new folder where it was trained here."""
    folder = run.path.as_posix()
    lines: list[list[str]] = []
    again = folder
    if run.recipe:
        again = f"{folder}-again"
        lines.append(["certood", "train", f"{folder}/recipe.toml", "--out", again])
    if run.evaluation is not None and run.recipe:
        lines.append(["certood", "evaluate", again])
    if run.certification is not None:
        lines.append(_certify(run, again))
    return [shlex.join(line) for line in lines]


def _certify(run: Run, folder: str) -> list[str]:
    assert run.certification is not None
    settings = run.certification["settings"]
    words = ["certood", "certify", folder, "--norm", str(run.certification["norm"])]
    words += ["--eps", ",".join(repr(radius) for radius in run.certification["eps"])]
    words += ["--method", settings["method"], "--seed", str(settings["seed"])]
    if settings.get("engine", "certood") != "certood":
        words += ["--engine", settings["engine"]]
    elif settings["method"] not in ("interval", "smoothing"):
        words += ["--dtype", settings.get("dtype", "float64")]
    if settings.get("second_attack") is not None:
        words += ["--second-attack", settings["second_attack"]]
    for option, usual in (("parts", 0), ("timeout", 0.0)):
        if settings.get(option, usual) != usual:
            words += [f"--{option}", str(settings[option])]
    if settings["method"] == "alpha-crown":
        words += ["--iterations", str(settings["iterations"])]
    if run.smoothed:
        noise = settings["smoothing"]
        words += ["--sigma", f"{noise['sigma']:g}", "--samples", str(noise["samples"])]
        words += ["--confidence", f"{noise['confidence']:g}"]
    if run.settings.get("limit") is not None:
        words += ["--limit", str(run.settings["limit"])]
    if run.evaluation is not None and run.certification.get("score") != run.evaluation.get("score"):
        words += ["--score", str(run.certification["score"])]
    sets = run.certification["sets"]
    data = run.recipe.get("data", {})
    outside = [name for name, entry in sets.items() if entry["kind"] == "ood"]
    inside = next((name for name, entry in sets.items() if entry["kind"] == "id"), None)
    if inside is not None and inside not in (data.get("id"), data.get("id_test")):
        words += ["--id", inside]
    if outside != list(data.get("ood", outside)):
        words += [word for name in outside for word in ("--ood", name)]
    return words


def _versions(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "not known"

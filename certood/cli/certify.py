"""`certood certify`: certified radii, local Lipschitz constants, attacks and certified metrics of a detector."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from certood.analysis.executors import EXECUTORS, PROCESSES
from certood.cli.detectors import foreign_options
from certood.cli.image_sets import ImageSetOptions, image_set_options
from certood.cli.interruption import interruptible
from certood.waiting import busy

# The options that are fields of `MedianSmoothing`.
SMOOTHING = ("sigma", "samples", "confidence")


class KnownName(click.ParamType[str]):
    """A name that `find` knows; the members of the family are imported only when one is named, because that imports torch."""

    def __init__(self, name: str, find: Callable[[str], object]) -> None:
        self.name, self.find = name, find

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one."""
        with busy("Loading PyTorch"):
            from certood.errors import CertoodError

            try:
                self.find(value)
            except CertoodError as error:
                self.fail(str(error), param, ctx)
        return value


def _engine(name: str) -> object:
    from certood.analysis.bounds import engine_by_name

    return engine_by_name(name)


def _attack_library(name: str) -> object:
    from certood.analysis.evidence.attack_libraries import library_by_name

    return library_by_name(name)


@click.command("certify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--norm", type=click.Choice(["inf", "2", "1"]), default="inf", show_default=True, help="Norm of the ball."
)
@click.option(
    "--eps",
    multiple=True,
    default=("0.01",),
    show_default="0.01",
    help="Radii in pixels, e.g. 0.01,8/255; the first is the main one.",
)
@click.option(
    "--method",
    type=click.Choice(["interval", "crown-ibp", "crown", "alpha-crown", "smoothing"]),
    default="crown",
    show_default=True,
    help="How bounds are computed; smoothing is probabilistic and for l2.",
)
@click.option(
    "--engine",
    type=KnownName("engine", _engine),
    default="certood",
    show_default=True,
    help="What bounds the scores: certood itself, or a second engine, for l_inf; an unknown name lists them.",
)
@click.option(
    "--score",
    "score_name",
    help="Another score than the detector's own, e.g. msp or energy:temperature=2; γ is computed from validation images.",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many images a set, spread evenly over it.")
@image_set_options
@click.option(
    "--parts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Refine radii by branch and bound, a ball in at most so many parts (slow).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Refine radii by branch and bound, for so long an image; what is found then depends on the machine.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float64", "float32"]),
    default="auto",
    show_default=True,
    help="Precision of linear bounds; float32 is faster, widened by its rounding; auto takes it where products keep all digits.",
)
@click.option(
    "--bound-base", is_flag=True, help="Bound the classifier of a guarded detector as well, not its guard alone."
)
@click.option(
    "--second-attack",
    type=KnownName("library", _attack_library),
    help="Also attack by another library (foolbox: certood[attacks]); the nearer attack counts.",
)
@click.option("--iterations", type=click.IntRange(1), default=20, show_default=True, help="Steps of α-CROWN.")
@click.option("--sigma", type=float, default=0.12, show_default=True, help="Noise of smoothing, in pixels.")
@click.option(
    "--samples", type=click.IntRange(10), default=1000, show_default=True, help="Samples of smoothing an image."
)
@click.option("--confidence", type=float, default=0.999, show_default=True, help="Confidence of smoothing, an image.")
@click.option(
    "--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N: a device that has float64."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes on this machine, or jobs of --executor.",
)
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    default=PROCESSES,
    show_default=True,
    help="What runs the jobs: with local and slurm each writes a file of its own, which are merged at the end.",
)
@click.option(
    "--job-option",
    "job_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the jobs (submitit), e.g. slurm_partition=cpu, timeout_min=600, mem_gb=8.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of attacks, samples and noise.")
@click.option(
    "--require",
    "requirements",
    multiple=True,
    help='Condition, e.g. "gauc>=0.6"; exit code 1 where it does not hold for the less favourable end of the 95 % interval.',
)
@click.option("--allow-few", is_flag=True, help="Let requirements hold for fewer than 100 images a set.")
@click.option("--overwrite", is_flag=True, help="Replace what was certified before, instead of continuing it.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: the run directory]")
@foreign_options
def command(
    run: Path,
    norm: str,
    eps: tuple[str, ...],
    method: str,
    engine: str,
    score_name: str | None,
    limit: int | None,
    parts: int,
    timeout: float,
    dtype: str,
    bound_base: bool,
    second_attack: str | None,
    iterations: int,
    sigma: float,
    samples: int,
    confidence: float,
    device: str,
    batch_size: int,
    jobs: int,
    executor: str,
    job_options: tuple[str, ...],
    seed: int,
    requirements: tuple[str, ...],
    allow_few: bool,
    overwrite: bool,
    out: Path | None,
    sets: ImageSetOptions,
    **foreign: str | int | None,
) -> None:
    """Certify the detector of RUN, a run directory, a checkpoint file, or hf:OWNER/NAME, on its own test images.

    Writes certificates.csv (a row an image; a killed run continues where it stopped), certification.json and figures/.
    """
    with busy("Loading PyTorch"):
        from certood.analysis.certify_run import certify_sets
        from certood.analysis.evidence.smoothing import MedianSmoothing
        from certood.analysis.executors import executor_by_name
        from certood.analysis.records import read_certificates
        from certood.analysis.requirements import (
            check_names,
            check_outcomes,
            judge,
            outcome_table,
            parse_requirement,
            require_enough,
        )
        from certood.analysis.settings import Settings, require_applicable, with_fast_rows
        from certood.analysis.summary import summary_table
        from certood.analysis.workers import threads_each
        from certood.bridges.hub import run_and_results
        from certood.checkpoints import is_onnx
        from certood.cli.detectors import calibrated, open_detector
        from certood.devices import resolve_device
        from certood.errors import CertoodError
        from certood.runs import RunDirectory

    wanted = [parse_requirement(text) for text in requirements]
    if allow_few and not wanted:
        raise CertoodError("--allow-few is about requirements; add --require, or leave it out")
    settings = Settings(
        eps=_radii(",".join(eps)),
        norm=float(norm),
        method=method,
        engine=engine,
        iterations=iterations,
        parts=parts,
        timeout=timeout,
        dtype="float64" if dtype == "auto" else dtype,
        seed=seed,
        bound_base=bound_base,
        second_attack=second_attack,
        smoothing=MedianSmoothing(sigma, samples, confidence),
    )
    require_applicable(_given(), settings)
    settings.require_installed()
    place = resolve_device(device)
    if dtype == "auto":
        settings = with_fast_rows(settings, place)
    run = run_and_results(run, out)
    detector = open_detector(run, foreign, place)
    splits, ood = sets.load(run, detector)
    kinds = {splits.test.name: "id"} | dict.fromkeys(ood, "ood")
    check_names(wanted, kinds, smoothed=settings.smoothed)
    if not allow_few:
        counts = {
            source.name: len(source) if limit is None else min(limit, len(source))
            for source in (splits.test, *ood.values())
        }
        require_enough(wanted, {name: (kind, counts[name]) for name, kind in kinds.items()}, smoothed=settings.smoothed)
    somebodys = foreign.get("architecture") is not None or is_onnx(run)
    detector = calibrated(detector, splits, score_name, foreign=somebodys)
    folder = out or RunDirectory.of(run).folder
    runner = executor_by_name(executor, RunDirectory(folder).share_logs, _options(job_options))
    without = " without --overwrite" if overwrite else ""
    with interruptible(f"Finished images are kept in {folder}; the same command{without} continues."):
        result = certify_sets(
            detector,
            splits.test,
            ood,
            folder,
            settings,
            limit=limit,
            batch_size=batch_size,
            jobs=jobs,
            executor=runner,
            threads=threads_each(jobs) if executor == "local" else None,
            overwrite=overwrite,
        )
    click.echo(summary_table(result, settings.eps))
    _print_nearest_attacks(result)
    if result["violations"]:
        click.echo(
            f"WARNING: {result['violations']} inequalities that must hold do not (column violations of certificates.csv): "
            "the bounds are not sound there; please report it",
            err=True,
        )
    click.echo(f"Written: {folder}")
    if wanted:
        records, _ = read_certificates(RunDirectory(folder).certificates, settings.eps)
        outcomes = judge(wanted, result, records)
        click.echo(outcome_table(outcomes))
        check_outcomes(outcomes)


def _print_nearest_attacks(result: Mapping[str, Any]) -> None:
    """Whose attack was the nearest, where a second one was asked for."""
    if "nearest_attack" in result:
        counts = ", ".join(f"{name} {count}" for name, count in result["nearest_attack"].items())
        click.echo(f"nearest attack, in images: {counts}")


def _given() -> set[str]:
    """The options on the command line, as `Settings` names them."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return {f"smoothing.{name}" if name in SMOOTHING else name for name in given}


def _options(texts: tuple[str, ...]) -> dict[str, str | int | float]:
    """Options of jobs: numbers where they read as such."""
    found: dict[str, str | int | float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--job-option")
        try:
            found[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            found[name] = value
    return found


def _radii(text: str) -> tuple[float, ...]:
    from fractions import Fraction

    try:
        return tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise click.BadParameter(
            f"expected numbers or fractions such as 8/255, separated by commas, got {text!r}", param_hint="--eps"
        ) from error

"""`certood export`: the claims of a certification as ONNX and VNN-LIB, for other verifiers."""

from pathlib import Path

import click

from certood.cli.detectors import foreign_options
from certood.cli.image_sets import ImageSetOptions, image_set_options
from certood.waiting import busy


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: claims in the run directory]")
@click.option("--limit", type=click.IntRange(1), help="Claims of at most so many images a set.")
@click.option(
    "--certified", type=click.Path(path_type=Path), help="Folder of the certification.  [default: the run directory]"
)
@image_set_options
@click.option("--overwrite", is_flag=True, help="Replace what was exported to the folder before.")
@foreign_options
def command(
    run: Path,
    out: Path | None,
    limit: int | None,
    certified: Path | None,
    overwrite: bool,
    sets: ImageSetOptions,
    **foreign: str | int | None,
) -> None:
    """Export what is certified of RUN (a run directory, or hf:OWNER/NAME), so that other verifiers can check it.

    Writes the network with its score as ONNX, and for every decision that is certified at a radius a property in VNN-LIB 1.0 and
    2.0; where the score is energy or max-logit, also a sufficient condition on the logits alone. See docs/claims.md.
    """
    from collections import Counter

    with busy("Loading PyTorch"):
        from certood.analysis.claims.certified_run import certified_run
        from certood.analysis.claims.export_run import export_claims
        from certood.bridges.hub import run_and_results
        from certood.cli.detectors import open_detector
        from certood.runs import RunDirectory

    run = run_and_results(run, out)
    detector = open_detector(run, foreign)
    splits, ood = sets.load(run, detector)
    own = RunDirectory.of(run).folder
    sources = {splits.test.name: splits.test, **ood}
    finished = certified_run(detector, sources, certified or own)
    found = export_claims(finished, out or own / "claims", limit=limit, overwrite=overwrite)
    images = len({(entry["set"], entry["index"]) for entry in found.entries})
    click.echo(f"{len(found.entries)} claims about {images} images")
    for name, comparison in found.networks.items():
        click.echo(
            f"{name}: compared with the module on {comparison.images} images\n"
            f"  largest relative difference: onnxruntime {comparison.onnxruntime_float32:.1e}, float64 {comparison.float64:.1e}"
        )
    if not found.conditions:
        click.echo(f"conditions: none is known for the score {finished.detector.score.label}")
    for accepted, word in ((True, "accepted"), (False, "rejected")):
        group = [one for one in found.conditions if one.claim.accepted == accepted]
        if group:
            proved = sum(one.proved for one in group)
            click.echo(f"{word}: own bounds prove the sufficient condition of {proved} of {len(group)} claims")
    missing = Counter(entry["no_certificate"] for entry in found.entries if not entry["certificate"])
    written = len(found.entries) - missing.total()
    click.echo(f"certificates: {written} of {len(found.entries)} claims have one, for `certood check`")
    for reason, count in missing.items():
        click.echo(f"  {count} {'has' if count == 1 else 'have'} none: {reason}")
    click.echo(f"Written: {found.folder}")

"""`certood check`: verify the claims of an export without what made them."""

from pathlib import Path

import click

SHOWN = 10


@click.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--points", type=click.IntRange(0), default=8, show_default=True, help="Sampled images of every ball.")
def command(folder: Path, points: int) -> None:
    """Check the claims in DIR, a folder that `certood export` wrote: its files, and the proof in every certificate.

    Nothing of certood's own bounds is used, and no PyTorch: linear bounds are computed again from the slopes in the certificates,
    with outward rounding. Exit code 1 where a file was changed or a certificate does not hold. See docs/claims.md.
    """
    import math
    import sys
    from collections import Counter

    from certood.checking.folder import check_folder

    found = check_folder(folder, points)
    click.echo(f"files: {found.files} listed in claims.json")
    written = found.claims - len(found.without)
    click.echo(
        f"certificates: {found.proved} of {written} hold"
        if written
        else "certificates: there are none, so nothing is proved"
    )
    if found.proved:
        click.echo(f"  smallest proved distance from a threshold: {found.smallest_margin:.3g}")
    if found.points:
        click.echo(
            f"sampled: {found.points} images, evaluated by onnxruntime; the checker's reading of the\n"
            f"  network differs by at most {found.network_difference:.1e} of what its logits are sums of"
        )
    elif points and found.proved and math.isnan(found.network_difference):
        click.echo("sampled: nothing, because onnxruntime is not installed")
    for reason, count in Counter(reason for _, reason in found.without).items():
        click.echo(f"without a certificate: {count} of {found.claims} claims\n  {reason}")
    if found.wrong:
        for line in found.wrong[:SHOWN]:
            click.echo(f"WRONG: {line}", err=True)
        if len(found.wrong) > SHOWN:
            click.echo(f"and {len(found.wrong) - SHOWN} more", err=True)
        sys.exit(1)

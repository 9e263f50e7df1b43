"""Which networks of torchvision and timm are captured: the difference to the module, and the width of their interval bounds.

Random weights, random images, the logits over l_inf balls of radius 1e-8. A network whose last layer starts at zero gets random
weights there, as its logits would be constant. Every network is measured in a process of its own, one after the other.

    python benchmarks/networks.py --json networks.json
    python benchmarks/networks.py --networks torchvision:vit_b_16 timm:convnext_atto --size 224
"""

import argparse
import json
import multiprocessing
import os
import queue
import resource
import time
import warnings
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from certood.analysis.bounds import LpBall, bound, capture
from certood.analysis.bounds.witness import difference, probes
from certood.errors import CertoodError

TIMM = (
    "convnext_atto", "convnextv2_atto", "poolformer_s12", "mixer_s32_224",
    "resmlp_12_224", "gmlp_ti16_224", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "efficientnet_b0", "regnetx_002",
    "resnet10t", "rexnet_100", "ghostnet_100", "levit_128s",
    "xcit_nano_12_p16_224", "cait_xxs24_224", "pit_ti_224", "mobilevit_xxs",
)  # fmt: skip


def every_network() -> list[str]:
    """torchvision's classification networks, and a few of timm's."""
    return [
        *(f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)),
        *(f"timm:{name}" for name in TIMM),
    ]


def made(name: str) -> nn.Module:
    """A network with random weights, in eval mode."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        network: nn.Module = timm.create_model(model, pretrained=False)
    else:
        plain = {"init_weights": True, "aux_logits": False} if model in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(model, weights=None, **plain)
    last = [part for part in network.modules() if isinstance(part, nn.Linear)]
    if last and not last[-1].weight.any():
        nn.init.normal_(last[-1].weight, std=0.02)
    return network.eval()


def measured(name: str, size: int, eps: float) -> dict[str, str | float]:
    """One row of the table."""
    warnings.simplefilter("ignore")
    row: dict[str, str | float] = {"network": name, "size": size}
    begin = time.perf_counter()
    try:
        network = made(name)
        images = torch.rand(1, 3, size, size)
        graph = capture(network, images)
        row["capture_seconds"] = time.perf_counter() - begin
        assert graph.module is not None
        apart, largest = difference(graph, graph.module, probes(graph.nodes[0].shape)[:2])
        row |= {"difference": apart, "largest_logit": largest}
        begin = time.perf_counter()
        with torch.no_grad():
            found = bound(graph, LpBall(images, eps), "interval")
        row |= {"width": float(found.width.max()), "bound_seconds": time.perf_counter() - begin, "refused": ""}
    except CertoodError as error:
        row["refused"] = str(error)
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def measure_into(results: "multiprocessing.Queue[dict[str, str | float]]", name: str, size: int, eps: float) -> None:
    results.put(measured(name, size, eps))


def apart(name: str, size: int, eps: float, seconds: float) -> dict[str, str | float]:
    """The same in a process of its own, which is ended after so many seconds."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[dict[str, str | float]] = context.Queue()
    process = context.Process(target=measure_into, args=(results, name, size, eps))
    process.start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        process.terminate()
        return {"network": name, "size": size, "refused": f"not finished after {seconds:g} s, or out of memory"}
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", help="torchvision:NAME or timm:NAME; all without it")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--eps", type=float, default=1e-8, help="radius in pixels")
    parser.add_argument("--seconds", type=float, default=600, help="limit for one network")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    print("| network | captured | difference | largest logit | width | capture s | bound s | GiB |\n|" + "---|" * 8)
    for name in arguments.networks or every_network():
        row = apart(name, arguments.size, arguments.eps, arguments.seconds)
        rows.append(row)
        if row["refused"]:
            print(f"| {name} | refused: {row['refused']} | | | | | | |", flush=True)
            continue
        figures = [f"{row[key]:.3g}" for key in ("difference", "largest_logit", "width")]
        figures += [f"{row[key]:.1f}" for key in ("capture_seconds", "bound_seconds", "peak_gib")]
        print(f"| {name} | yes | {' | '.join(figures)} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()

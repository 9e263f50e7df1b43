"""Images a second of a forward pass without gradients, by the size of its batches, as a Markdown table.

    python benchmarks/forward_batches.py [NETWORK ...] [--threads 2] [--repeats 3] [--batches 4,16,64,512] [--json FILE]

Networks are certood's, at 32 × 32, or torchvision:NAME, at 224 × 224. The best of interleaved repeats; the batch that
`collect_logits` takes by itself is measured too, and set beside the largest one.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

from certood.files import write_atomically
from certood.inference import forward_batch
from certood.models import build_model

NETWORKS = (
    "resnet20",
    "wrn-40-2",
    "resnet18",
    "densenet-bc-100-12",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
)


def made(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with random weights in eval mode, and the shape (C, H, W) of its images."""
    shape = (3, 224, 224) if name.startswith("torchvision:") else (3, 32, 32)
    return build_model(name, num_classes=10, input_shape=shape, mean=[0.5] * 3, std=[0.25] * 3).eval(), shape


@torch.inference_mode()
def rate(network: nn.Module, images: torch.Tensor, batch: int) -> float:
    """Images a second."""
    began = time.perf_counter()
    for part in images.split(batch):
        network(part)
    return len(images) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", default="4,16,64,512")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    asked = sorted(map(int, arguments.batches.split(",")))
    networks = {name: made(name) for name in arguments.networks}
    owns = {name: forward_batch(shape, "cpu") for name, (_, shape) in networks.items()}
    columns = sorted({*asked, *owns.values()})
    print(f"| network | own batch | {' | '.join(map(str, columns))} | own / {asked[-1]} |")
    print(f"|---|{'---|' * (len(columns) + 2)}")
    for name, (network, shape) in networks.items():
        own = owns[name]
        batches = sorted({own, *asked})
        images = torch.rand(max(batches), *shape)
        found = dict.fromkeys(batches, 0.0)
        for _ in range(arguments.repeats):
            for batch in batches:
                # Small batches need fewer images for the same certainty.
                found[batch] = max(found[batch], rate(network, images[: max(batch, 64)], batch))
        rows.append({"network": name, "own": own, "images_per_second": found, "ratio": found[own] / found[asked[-1]]})
        cells = [f"{found[batch]:.0f}" if batch in found else "" for batch in columns]
        print(f"| {name} | {own} | {' | '.join(cells)} | {rows[-1]['ratio']:.1f} |", flush=True)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    main()

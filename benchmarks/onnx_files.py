"""Which networks of torchvision and timm are read from the files of both exporters of PyTorch, and what reading them takes.

Random weights as in networks.py. Each file is read in a process of its own; its network is compared with onnx.reference and
onnxruntime, as always.

    python benchmarks/onnx_files.py --json onnx.json
    python benchmarks/onnx_files.py --networks torchvision:vit_b_16 --exporters old --images 1
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from networks import made

from certood.errors import CertoodError
from certood.onnx import read_onnx

NETWORKS = (
    "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny", "torchvision:densenet121", "torchvision:shufflenet_v2_x1_0", "torchvision:googlenet",
    "torchvision:inception_v3", "torchvision:vit_b_16", "torchvision:swin_t", "torchvision:swin_v2_t",
    "timm:vit_tiny_patch16_224", "timm:mixer_s32_224", "timm:poolformer_s12",
)  # fmt: skip


def export(name: str, size: int, exporter: str, images: str, path: Path) -> None:
    """Write the file of a network for one image, or for any number of them."""
    warnings.simplefilter("ignore")
    network = made(name)
    example = torch.rand(1 if images == "1" else 2, 3, size, size)
    if exporter == "default":
        shapes = None if images == "1" else ({0: torch.export.Dim("batch")},)
        torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        axes = None if images == "1" else {"images": {0: "batch"}}
        torch.onnx.export(network, (example,), path, dynamo=False, input_names=["images"], dynamic_axes=axes)


def read(path: Path) -> dict[str, str | float]:
    """What reading a file found and took."""
    begin = time.process_time()
    row: dict[str, str | float] = {"refused": "", "onnx.reference": "", "onnxruntime": ""}
    try:
        for line in read_onnx(path).witness:
            other, _, what = line.partition(": ")
            number = re.search(r"difference (\S+)$", what)
            row[other] = float(number[1]) if number else what
    except CertoodError as error:
        row["refused"] = str(error)
    row["cpu_seconds"] = time.process_time() - begin
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="torchvision:NAME or timm:NAME")
    parser.add_argument("--exporters", nargs="+", default=("default", "old"), choices=("default", "old"))
    parser.add_argument(
        "--images", nargs="+", default=("1", "any"), choices=("1", "any"), help="that a file takes at once"
    )
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    print("| network | exporter | images | onnx.reference | onnxruntime | CPU s | peak GiB |\n|" + "---|" * 7)
    for name in arguments.networks:
        for exporter in arguments.exporters:
            for images in arguments.images:
                context = multiprocessing.get_context("spawn")
                with (
                    tempfile.TemporaryDirectory() as folder,
                    ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes,
                ):
                    path = Path(folder) / "network.onnx"
                    processes.submit(export, name, arguments.size, exporter, images, path).result()
                    row = processes.submit(read, path).result()
                rows.append({"network": name, "exporter": exporter, "images": images} | row)
                found = [f"refused: {row['refused']}" if row["refused"] else row["onnx.reference"], row["onnxruntime"]]
                figures = [f"{row['cpu_seconds']:.1f}", f"{row['peak_gib']:.2f}"]
                print(f"| {name} | {exporter} | {images} | {' | '.join([*map(str, found), *figures])} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()

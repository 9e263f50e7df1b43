"""Does any file make the readers of image sets do something else than return a correct set or raise one CertoodError?

The long version of the fuzz tests in tests/certood/test_npz.py and test_pictures.py. Valid files of every format are damaged:
bytes changed, cut, doubled, parts of other files put in; npz files are also built from random headers and arrays of
random types. Allowed outcomes are a set whose batches have the shape that it says, and one CertoodError. Everything else, and
more than --memory MiB or --seconds for one file, is printed and counted; exit code 1 where there was any.

    python benchmarks/fuzz_data.py --cases 20000 --seed 0 --json fuzz.json
"""

import argparse
import io
import json
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from certood.data import load_set
from certood.errors import CertoodError

FORMATS = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")
DTYPES = ("u1", "i8", "u8", "f4", "?", "U3", "S2", "c8", "M8[s]", "O", "V5")


def picture(generator: np.random.Generator, kind: str) -> bytes:
    """A valid picture of a random size and a random kind of pixels that the format takes."""
    side = int(generator.integers(1, 12))
    modes: dict[str, Image.Image] = {
        "RGB": Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)),
        "L": Image.fromarray(generator.integers(0, 256, (side, side), dtype=np.uint8)),
        "RGBA": Image.fromarray(generator.integers(0, 256, (side, side, 4), dtype=np.uint8)),
        "I;16": Image.fromarray(generator.integers(0, 65536, (side, side), dtype=np.uint16)),
    }
    modes |= {"1": modes["L"].convert("1"), "P": modes["L"].convert("P"), "LA": modes["RGBA"].convert("LA")}
    order = generator.permutation(list(modes))
    for mode in order:
        content = io.BytesIO()
        try:
            modes[str(mode)].save(content, kind)
        except (OSError, ValueError, KeyError):
            continue
        return content.getvalue()
    raise AssertionError(f"no mode can be written as {kind}")


def archive(generator: np.random.Generator) -> bytes:
    """An npz file of arrays of random types and shapes, headers that may not be true, and random compression."""
    content = io.BytesIO()
    compression = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA][
        int(generator.choice(4, p=[0.4, 0.4, 0.1, 0.1]))
    ]
    count = int(generator.integers(0, 9))
    with zipfile.ZipFile(content, "w", compression) as file:
        for name in ("images", "labels", "classes", "other"):
            if generator.random() < 0.15:
                continue
            file.writestr(f"{name}.npy", member(generator, name, count))
    return content.getvalue()


def member(generator: np.random.Generator, name: str, count: int) -> bytes:
    """One array: mostly of the type that its name asks for, sometimes of another, sometimes with a wrong header."""
    usual: dict[str, Callable[[], np.ndarray]] = {
        "images": lambda: generator.integers(0, 256, (count, 5, 5, *((3,) if count % 2 else ())), dtype=np.uint8),
        "labels": lambda: generator.integers(0, max(count, 1), count),
        "classes": lambda: np.array([str(index) for index in range(count)]),
        "other": lambda: np.zeros(3),
    }
    content = io.BytesIO()
    choice = generator.random()
    if choice < 0.6:
        np.lib.format.write_array(content, usual[name]())
    elif choice < 0.8:
        shape = tuple(int(side) for side in generator.integers(0, 6, int(generator.integers(0, 5))))
        dtype = np.dtype(str(generator.choice(DTYPES)))
        np.lib.format.write_array(content, np.zeros(shape, dtype), allow_pickle=True)
    else:
        shape = tuple(int(10 ** generator.uniform(0, 14)) for _ in range(int(generator.integers(0, 5))))
        descr, order = str(generator.choice(["|u1", "<i8", "<U9"])), bool(generator.integers(2))
        header = {"descr": descr, "fortran_order": order, "shape": shape}
        np.lib.format.write_array_header_1_0(content, header)
        content.write(generator.bytes(int(generator.integers(0, 300))))
    return content.getvalue()


def valid(generator: np.random.Generator, kind: str) -> bytes:
    """A file of this kind before it is damaged."""
    return archive(generator) if kind == "npz" else picture(generator, kind)


def damaged(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """The content with a few random changes."""
    changed = bytearray(content)
    for _ in range(int(generator.integers(0, 5))):
        if not changed:
            break
        place = int(generator.integers(len(changed)))
        match int(generator.integers(6)):
            case 0 | 1:
                changed[place] = int(generator.integers(256))
            case 2:
                changed[place] ^= 1 << int(generator.integers(8))
            case 3:
                del changed[place:]
            case 4:
                changed[place:place] = changed[place : place + int(generator.integers(64))]
            case _:
                start = int(generator.integers(len(other)))
                changed[place : place + 32] = other[start : start + 32]
    return bytes(changed)


def outcome(name: str, root: Path) -> str:
    """What the reader does: "set", "error", or a description of what it must not do."""
    try:
        found = load_set(name, root=root)
        images = found.batch(torch.arange(len(found)))
        if images.dtype != torch.uint8 or images.shape != (len(found), *found.shape) or not len(found):
            return f"a set of shape {found.shape} gave {images.dtype} {tuple(images.shape)}"
        if found.labels is not None and not 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(
            found.classes
        ):
            return f"labels {found.labels.tolist()} of {len(found.classes)} classes"
        _ = found.fingerprint
    except CertoodError:
        return "error"
    except BaseException:
        return traceback.format_exc()
    return "set"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=300, help="MiB that one file may take")
    parser.add_argument("--seconds", type=float, default=10, help="that one file may take")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in range(arguments.cases):
            generator = np.random.default_rng([arguments.seed, case])
            kind = str(generator.choice(["npz", "npz", *FORMATS]))
            content = damaged(generator, valid(generator, kind), valid(generator, kind))
            root = Path(folder) / str(case)
            root.mkdir()
            (root / f"x.{kind}").write_bytes(content)
            options = str(generator.choice(["", "?size=6", "?colour=rgb", "?background=white", "?classes=0-2"]))
            tracemalloc.start()
            began = time.perf_counter()
            name = ("npz:x.npz" if kind == "npz" else "folder:.") + options
            found = outcome(name, root)
            seconds, memory = time.perf_counter() - began, tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            if seconds > arguments.seconds:
                # Tracing of memory takes most of the time where a decoder makes many small objects.
                began = time.perf_counter()
                found = outcome(name, root)
                seconds = time.perf_counter() - began
            if found in ("set", "error") and (seconds > arguments.seconds or memory > arguments.memory):
                found = f"took {seconds:.1f} s and {memory:.0f} MiB"
            (root / f"x.{kind}").unlink()
            root.rmdir()
            counts[f"{kind}: {found if found in ('set', 'error') else 'failure'}"] += 1
            if found not in ("set", "error"):
                failures.append({"case": case, "kind": kind, "what": found})
                print(f"case {case} ({kind}): {found}", file=sys.stderr)
    for name, count in sorted(counts.items()):
        print(f"{name:15} {count}")
    print(f"{arguments.cases} cases, {len(failures)} failures")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"cases": arguments.cases, "counts": counts, "failures": failures}, indent=2) + "\n"
        )
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())

"""Damage for the readers of a run's files: bytes changed, cut, doubled, and values of JSON or TOML replaced."""

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
import torch

from certood.analysis.records import read_certificates
from certood.analysis.reporting import provenance
from certood.analysis.reporting.formats import tables_as_csv, tables_as_json
from certood.analysis.reporting.runs import read_runs
from certood.analysis.reporting.verdict import verdict
from certood.checkpoints import load, load_checkpoint, load_foreign, stored_identity
from certood.errors import CertoodError
from certood.evaluation import read_evaluation
from certood.runs import RunDirectory
from certood.runs.directory import read_json
from certood.train.run_directory import load_state, read_run_recipe

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, -1e308, 10**30, float("nan"), float("inf"), "", "x", "[bold]", "\x00", "../..",
    [], {}, [[]], [None], {"a": {}}, [1.0] * 3,
)  # fmt: skip


def _foreign(run: RunDirectory) -> object:
    own = load_checkpoint(run.folder / "kept.safetensors")
    return load_foreign(
        run.folder / "weights.pt",
        architecture=own.architecture,
        classes=own.classes,
        input_shape=own.input_shape,
        mean=own.mean,
        std=own.std,
        options=own.options,
    )


def _reported(run: RunDirectory) -> object:
    runs = read_runs([run.folder])
    return (
        tables_as_json(runs),
        tables_as_csv(runs),
        verdict(runs),
        provenance.facts(runs[0]),
        provenance.commands(runs[0]),
    )


# The file that is damaged, and what reads it.
READERS: dict[str, tuple[str, Callable[[RunDirectory], object]]] = {
    "checkpoint": ("checkpoint.safetensors", lambda run: (stored_identity(run.folder), load_checkpoint(run.folder))),
    "state dict": ("weights.pt", _foreign),
    "ONNX": ("network.onnx", lambda run: load(run.folder / "network.onnx")),
    "training state": ("training_state.pt", lambda run: load_state(run, torch.device("cpu"), 2)),
    "recipe": ("recipe.toml", read_run_recipe),
    "evaluation": ("evaluation.json", lambda run: read_evaluation(run.evaluation)),
    "certificates": ("certificates.csv", lambda run: read_certificates(run.certificates)),
    "settings": ("certification_settings.json", lambda run: read_json(run.certification_settings)),
    "a run with a damaged evaluation": ("evaluation.json", _reported),
    "a run with a damaged certification": ("certification.json", _reported),
}


def outcome(run: RunDirectory, reader: str, seed: int) -> str:
    """Damage a copy of a run's file, read it, put it back: "read", or "refused" by one error; anything else is raised."""
    name, read = READERS[reader]
    path = run.folder / name
    kept = path.read_bytes()
    try:
        path.write_bytes(damaged(path, kept, random.Random(seed)))
        read(run)
    except CertoodError as error:
        return "refused" if str(error) else "an error without a message"
    finally:
        path.write_bytes(kept)
    return "read"


def damaged(path: Path, content: bytes, chance: random.Random) -> bytes:
    """The content with some damage; files of values have values replaced as often as bytes."""
    if chance.random() < 0.5:
        if path.suffix == ".json":
            return json.dumps(_replaced(json.loads(content), chance)).encode()
        if path.suffix == ".toml":
            try:
                return tomli_w.dumps(_replaced(tomllib.loads(content.decode()), chance)).encode()
            except (TypeError, ValueError, AttributeError):
                pass
        if path.suffix == ".safetensors":
            return _header_changed(content, chance)
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(max(1, min(len(found), chance.choice((16, 2000, len(found))))))
        match chance.randrange(4):
            case 0:
                found[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[place : place + chance.choice((1, 4, 100))]
            case 2:
                found[place:place] = found[place : place + chance.choice((1, 16, 300))]
            case _:
                found = found[: place + 1] if chance.random() < 0.2 else found
        if not found:
            break
    return bytes(found)


def _header_changed(content: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if chance.random() < 0.7:
        metadata = json.loads(header["__metadata__"]["certood"])
        header["__metadata__"]["certood"] = json.dumps(_replaced(metadata, chance))
    else:
        header = _replaced(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _replaced(value: Any, chance: random.Random) -> Any:
    """The value with something in it replaced, at any depth; sometimes something is left out."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: _replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], _replaced(value[place], chance), *value[place + 1 :]]
    return chance.choice(VALUES)

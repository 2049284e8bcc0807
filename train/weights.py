# SPDX-License-Identifier: Apache-2.0
"""Weights as files: how training writes them, and how it starts from those that pre-training left."""

from __future__ import annotations

import json
import pathlib

from train import runs
from train.say import fail

WEIGHTS, PRETRAINING = "weights.safetensors", "pretraining.json"
HEADS = "heads"         # what compress/prune.py left, in the metadata of the weights


def packed(weights: dict, heads: dict[str, int] | None = None) -> bytes:
    """Tensors as the bytes of a safetensors file, with the numbers of heads where they are not the preset's."""
    from safetensors.torch import save
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    return save(tensors, metadata=heads and {HEADS: json.dumps(heads)})


def start(net, run: str, arch: str, preset: str, fold: int) -> tuple[list[str], dict]:
    """Load what pre-training left in `run` into `net`; the head stays fresh.

    (Names of the tensors loaded, what pretraining.json says.) Tensors of another shape, such as the first convolution
    for another number of leads, stay fresh and are counted. UserError when the architecture, the size or the fold is
    another, or no tensor fits.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    folder = pathlib.Path(run)
    try:
        about, held = json.loads((folder / PRETRAINING).read_text()), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        fail(f"{folder} holds no pre-trained weights: {error}", "a folder written by train/pretrain.py",
             f"python train/pretrain.py --arch {arch} --preset {preset} --run {folder}")
    for key, value in (("arch", arch), ("preset", preset), ("fold", fold)):
        if about[key] != value:
            fail(f"{folder} was pre-trained for {key} {about[key]}", f"{key} {value}"
                 + (": it has seen records that this fold is tested on" if key == "fold" else ""),
                 f"pass --{key} {about[key]}, or pre-train again")
    own = net.state_dict()
    fitting = {name: value for name, value in held.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        fail(f"no tensor of {folder} fits {arch} {preset}", "weights of the same network", "pre-train again")
    net.load_state_dict(fitting, strict=False)
    return list(fitting), about | {"left": len(held) - len(fitting), "sha256": runs.sha256(folder / WEIGHTS)}

# SPDX-License-Identifier: Apache-2.0
"""A quantized run together with the records it is judged on."""

from __future__ import annotations

from train import say


def opened(run: str, data: str | None, task: str | None = None):
    """(manifest, graph, dataset source) of a quantized run and the data it is judged on: its own task, or another."""
    from compress import evaluate
    from targets import target
    from train import dataset, tasks
    from train.prepare import open_shards, prepare
    manifest, graph = target.open_run(run)
    task = tasks.find(task or manifest.task)
    shards = open_shards(prepare(task, data, leads=",".join(manifest.waveform.leads)))
    if shards.frontend != manifest.frontend:
        say.fail(f"{run} was trained behind another front end than this release has", "the same constants",
                 "train it again, or use the release that trained it")
    where = evaluate.geometry(manifest, graph)
    return manifest, graph, dataset.source(shards, task, where, graph.inputs[1:],
                                           uv_per_lsb=round(manifest.waveform.lsb))


def held_out(manifest, source) -> dict[str, list[int]]:
    """Record numbers by part, test and apart among them; UserError when no record was kept from training."""
    from train import dataset
    parts = dataset.split(source.shards, manifest.provenance.get("fold", 0))
    if not parts["test"]:
        say.fail(f"no test records of task {manifest.task}", "records that were kept from training",
                 "pass the whole data set's folder as --data")
    return parts

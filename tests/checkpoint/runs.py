"""Two run folders compared: metrics, samples, TensorBoard, and every tensor and object of the last checkpoint."""

import hashlib
import json

WALL = ("timing/", "perf/", "reward/waited_s")
"""Figures of the clock, and of what depends on it."""


def figures(folder):
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(WALL) and not k.endswith("tps")} for line in lines]


def board(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(f"train/{tag}")]


def check_equal(folder, other, iterations):
    """`other` was continued, `folder` not."""
    # Iteration 0 is the evaluation before the first one.
    assert [line["iteration"] for line in figures(folder) if line["iteration"]] == list(range(1, iterations + 1))
    assert figures(other) == figures(folder)
    assert (other / "samples.jsonl").read_text() == (folder / "samples.jsonl").read_text()
    assert board(other, "grad_norm") == board(folder, "grad_norm") and len(board(folder, "grad_norm")) == iterations
    last = [entries(f / "checkpoints" / f"step_{iterations}") for f in (folder, other)]
    assert last[0].keys() == last[1].keys() and len(last[0]) > 60
    different = sorted({name for name, offset in last[0] if last[0][name, offset] != last[1][name, offset]})
    assert different == []


def entries(step):
    """(name, offset) -> sha256, for every tensor of a checkpoint and every rank's generators."""
    from torch.distributed.checkpoint import FileSystemReader

    found = {(path.name, 0): hashlib.sha256(path.read_bytes()).hexdigest() for path in step.glob("generators_*.pt")}
    for index, info in FileSystemReader(step).read_metadata().storage_data.items():
        with open(step / info.relative_path, "rb") as file:
            file.seek(info.offset)
            found[index.fqn, index.offset] = hashlib.sha256(file.read(info.length)).hexdigest()
    return found

"""What a run has left in its folder: its steps and its weights."""

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_train.reports.run_log import read_metrics


def steps_of(run_dir, after=0):
    """Return the lines of metrics.jsonl about steps after `after`."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [line for line in lines if "loss" in line and line["step"] > after]


def tensors_of(run_dir, name=None):
    """Return weights and moments of a checkpoint, the newest unless it is named, whole, by their names."""
    stored = open_rank_tensors(choose_checkpoint(run_dir, None, name)[0])
    names = [name for name in stored.names() if "model" in name or "lm_head" in name]
    return {
        name: stored.read(name, tuple(slice(0, size) for size in stored.shape(name)))[1] for name in names
    }

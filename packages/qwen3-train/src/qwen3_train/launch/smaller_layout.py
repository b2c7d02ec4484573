"""The layout of a run that goes on with fewer nodes: fewer replicas, each with more of the batch."""

from qwen3_model.errors import Qwen3Error
from qwen3_train.settings.run import TrainSettings


def smaller_layout(
    settings: TrainSettings, num_left: int, num_nodes: int, local_worker_num: int
) -> tuple[int, list[str]]:
    """Return how many of the nodes that are left take part, and the arguments that change the layout.

    Shards, stages and ranks that share a sequence stay as they are, and so does the global batch: gradients
    are accumulated over more passes.

    Args:
        settings: Settings of the run on all nodes.
        num_left: Nodes that are there.
        num_nodes: Nodes of the whole job.
        local_worker_num: Processes of a node.

    Raises:
        Qwen3Error: No number of nodes fits.
    """
    layout = settings.layout
    replica = layout.cp * layout.tp * layout.pp
    context = f"context_parallel {layout.cp} x " if layout.cp > 1 else ""
    shares = settings.accumulation * layout.data_parallel
    for count in range(num_left, 0, -1):
        dp, rest = divmod(count * local_worker_num, replica)
        if dp >= 1 and not rest and shares % dp == 0:
            keys = ("parallel_config.data_parallel", "runner_config.gradient_accumulation_steps")
            values = (dp, shares // dp)
            return count, [
                word for key, value in zip(keys, values, strict=True) for word in (f"--{key}", f"{value}")
            ]
    raise Qwen3Error(
        f"{num_left} of {num_nodes} nodes are left, {num_left * local_worker_num} processes, and no smaller "
        f"layout fits: whole replicas of {context}model_parallel {layout.tp} x pipeline_stage {layout.pp} = "
        f"{replica} processes, whose number divides data_parallel {layout.data_parallel} x "
        f"gradient_accumulation_steps {settings.accumulation} = {shares}; bring the nodes back and give the "
        "same command again"
    )

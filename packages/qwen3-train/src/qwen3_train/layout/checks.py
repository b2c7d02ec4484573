"""What must divide before a layout can train a model: one sentence for each thing that does not."""

from collections.abc import Sequence

from qwen3_model.command.plain_text import counted
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout
from qwen3_model.ranks.layout_checks import TP, near_divisors, split_problems

PP, DP = "parallel_config.pipeline_stage", "parallel_config.data_parallel"
CP = "parallel_config.context_parallel"


def layout_problems(
    config: Qwen3Config, layout: Layout, *, seq_length: int, offset: Sequence[int], micro_batch_num: int
) -> list[str]:
    """Say what of a model cannot be laid out on a grid.

    Args:
        config: The model.
        layout: The grid.
        seq_length: Tokens of a row.
        offset: Shift of the number of layers of each stage; empty for none.
        micro_batch_num: Micro-batches that go through the pipeline together.
    """
    return tensor_problems(config, layout, seq_length) + pipeline_problems(
        config, layout.pp, offset, micro_batch_num
    )


def tensor_problems(config: Qwen3Config, layout: Layout, seq_length: int) -> list[str]:
    """Say what tensor, sequence and context parallelism cannot split."""
    tp, cp = layout.tp, layout.cp
    problems = split_problems(config, tp)
    if cp > 1 and seq_length % (2 * cp):
        problems.append(
            f"seq_length={seq_length} does not divide by 2 x {CP}={cp}, the chunks that ranks share; change "
            "seq_length or context_parallel"
        )
    elif layout.sequence_parallel and seq_length // cp % tp:
        part = f" / {CP} {cp}" if cp > 1 else ""
        problems.append(
            f"seq_length={seq_length}{part} does not divide by {TP}={tp}, which use_seq_parallel needs; "
            "change seq_length or set use_seq_parallel to False"
        )
    return problems


def pipeline_problems(config: Qwen3Config, pp: int, offset: Sequence[int], micro_batch_num: int) -> list[str]:
    """Say which stages would be empty, unequal without an offset, or never full."""
    num_layers, problems = config.num_layers, []
    share, rest = divmod(num_layers, pp)
    if pp > num_layers:
        return [f"{PP}={pp} exceeds num_hidden_layers={num_layers}; use at most one stage per layer"]
    if not offset and rest:
        problems.append(
            f"num_hidden_layers={num_layers} does not divide by {PP}={pp}; use one of "
            f"{near_divisors(num_layers, pp)} or an offset of {pp} numbers whose sum is {rest}"
        )
    if offset and len(offset) != pp:
        problems.append(
            f"offset={list(offset)} has {len(offset)} numbers but {PP}={pp}; give one for each stage"
        )
    elif offset:
        if sum(offset) != rest:
            problems.append(
                f"offset={list(offset)} sums to {sum(offset)}, so the stages hold {share * pp + sum(offset)} "
                f"layers of num_hidden_layers={num_layers}; it must sum to {rest}"
            )
        if min(offset) + share < 1:
            problems.append(
                f"offset={list(offset)} leaves a stage without a layer ({share} before the shift)"
            )
    if micro_batch_num < 1:
        problems.append(f"parallel_config.micro_batch_num={micro_batch_num} must be at least 1")
    elif pp > 1 and micro_batch_num < pp:
        problems.append(
            f"parallel_config.micro_batch_num={micro_batch_num} is below {PP}={pp}, so that the pipeline is "
            f"never full; use at least {pp}"
        )
    return problems


def process_problems(layout: Layout, worker_num: int | None) -> list[str]:
    """Return a sentence where the layout needs another number of processes than there are; else nothing."""
    if worker_num is None or worker_num == layout.num_ranks:
        return []
    alone = ", or --use_parallel False for one process" if worker_num == 1 else ""
    context = f" x {CP}={layout.cp}" if layout.cp > 1 else ""
    grid = f"{DP}={layout.data_parallel}{context} x {TP}={layout.tp} x {PP}={layout.pp}"
    return [
        f"{grid} needs {layout.num_ranks} processes but worker_num is {worker_num}; give --worker-num "
        f"{layout.num_ranks}, another layout{alone}"
    ]


def batch_problems(dp: int, batch_size: int, passes: int, num_samples: int | None) -> list[str]:
    """Say when an epoch has not enough samples for one step."""
    counts = {"batch_size": batch_size, "gradient_accumulation_steps": passes}
    problems = [f"{key}={value} must be at least 1" for key, value in counts.items() if value < 1]
    global_batch = dp * batch_size * passes
    if num_samples is not None and not problems and global_batch > num_samples:
        problems.append(
            f"a step takes {counted(global_batch, 'sample')} (batch_size {batch_size} x {passes} forward "
            "passes x "
            f"data_parallel {dp}) but an epoch has {num_samples}; use a smaller batch or more data"
        )
    return problems

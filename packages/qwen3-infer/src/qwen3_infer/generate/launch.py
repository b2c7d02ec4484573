"""`qwen3-infer generate` in several processes: this one checks and watches, each worker has a shard.

Every worker reads the prompts, runs the same schedule and draws the same random numbers. They join their
logits after each step, so that all of them choose from the same bits; rank 0 shows and writes the results.
"""

from collections.abc import Mapping, Sequence

from qwen3_infer.generate.run import Output, prepare_generate, print_notes
from qwen3_infer.generate.shown import ShownReader
from qwen3_infer.settings.settings import RunSettings
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch, count_ascend_devices
from qwen3_model.ranks.msrun.launcher import Job, launch_workers


def launch_generate(
    settings: RunSettings,
    output: Output,
    launch: LaunchSettings,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    truncate: bool,
    allow_special: bool,
) -> None:
    """Generate in this node's workers until all have finished; node 0 has the prompts' results.

    Args:
        settings: What to do.
        output: Where results go and what is shown.
        launch: The workers.
        arguments: Arguments of the command line, which each worker reads again.
        environment: This process's environment, which the workers get.
        truncate: Whether prompts that are too long lose their beginning.
        allow_special: Whether special tokens' text in plain prompts are tokens.

    Raises:
        Qwen3Error: Something cannot work, or a worker failed.
    """
    prepared = prepare_generate(
        settings, output, truncate=truncate, allow_special=allow_special, writes=launch.node_rank == 0
    )
    devices = None
    if settings.device_target == "Ascend":
        devices = count_ascend_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES"))
    check_launch(launch, num_devices=devices)
    if launch.node_rank == 0:
        print_notes(prepared, output)
    shown = ShownReader(launch.log_dir, output.say, output.note)
    # What a terminal decides is decided here, where there may be one.
    stream = "--stream" if output.stream else "--no-stream"
    argv = ["-m", "qwen3_infer.cli_rank", "generate", *arguments, stream]
    job = Job(argv=argv, environment=environment, status=shown.status, quiet=output.quiet)
    try:
        launch_workers(job, launch, num_devices=devices)
    finally:
        shown.hand_on()

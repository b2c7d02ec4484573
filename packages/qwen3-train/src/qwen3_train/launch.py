"""From a command line to a run: every check first, MindSpore last."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from qwen3_model.errors import UsageError
from qwen3_model.files import write_text_atomically
from qwen3_model.run_config import RunConfig, load_run_config, parse_dotted
from qwen3_train.prepare import PreparedRun, prepare_run
from qwen3_train.run_folder import RESOLVED_CONFIG, replaced_run, write_model_files
from qwen3_train.run_log import RunLog
from qwen3_train.schema import FLAG_ALIASES, TRAIN
from qwen3_train.settings import read_settings


def launch_run(config_path: Path, arguments: Sequence[str], *, worker_num: int, force: bool) -> None:
    """Check the run that a YAML and dotted arguments describe, then train.

    Raises:
        UsageError: An argument cannot be meant.
        Qwen3Error: The run cannot work, for the reason given.
    """
    if worker_num != 1:
        raise UsageError(
            f"--worker-num {worker_num}: this version trains in one process; leave it out or give 1"
        )
    overrides = [(FLAG_ALIASES.get(key, key), value) for key, value in parse_dotted(arguments)]
    config = load_run_config(config_path, overrides, TRAIN)
    settings = read_settings(config, worker_num=worker_num)
    run = prepare_run(settings, force=force)
    replacing = force and not settings.resume and settings.output_dir.exists()
    with replaced_run(settings.output_dir) if replacing else nullcontext():
        log = RunLog(settings.output_dir, append=settings.resume)
        try:
            _start(run, config, log)
        except BaseException as error:
            with suppress(OSError):  # a full disk must not hide the error
                log.line(f"stopped: {error or type(error).__name__}", "ERROR", to_terminal=False)
            raise
        finally:
            log.close()


def _start(run: PreparedRun, config: RunConfig, log: RunLog) -> None:
    settings, plan = run.settings, run.plan
    for note in (*config.notes, *run.notes):
        log.line(note, "WARNING")
    log.line(
        f"model of {settings.model.num_parameters():,} parameters; {plan.num_steps} steps of "
        f"{plan.global_batch} samples of {settings.data.seq_length} tokens ({plan.num_epochs} epochs of "
        f"{plan.steps_per_epoch} steps)"
    )
    write_text_atomically(settings.output_dir / RESOLVED_CONFIG, config.to_yaml())
    write_model_files(
        settings.output_dir,
        settings.model,
        settings.hf_dir,
        tokenizer_dir=settings.tokenizer_dir,
        stop_ids=run.stop_ids,
    )
    log.line("importing MindSpore and compiling; the first step takes a while")
    from qwen3_train.trainer import set_up_device, train

    set_up_device(settings.device, graph_mode=config.get("context.mode", 0) == 0)
    train(run, log)
    log.line(f"finished; everything is in {settings.output_dir}")

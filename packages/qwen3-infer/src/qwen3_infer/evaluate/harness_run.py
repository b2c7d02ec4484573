"""`qwen3-infer eval`: lm_eval's own command line, with our model in place."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen3_infer.device import Device
from qwen3_infer.processes.shared_model import Sharing, open_model
from qwen3_infer.settings.settings import RunSettings, open_run_folder
from qwen3_model.errors import ConfigError, UsageError

# Those of lm_eval that say which model runs, which is settled here.
TAKEN = ("--model", "-M", "--device", "--config", "-C")


def run_harness(model: RunSettings, device: Device, arguments: Sequence[str], launch: Sharing = None) -> None:
    """Evaluate `model` as `arguments`, in lm_eval's spelling, say.

    Raises:
        UsageError: No task is named, or an argument says what the options of qwen3-infer say.
        ConfigError: lm_eval is not installed, or refuses a task or a setting.
        Qwen3Error: The folder cannot be used.
    """
    named = [argument.partition("=")[0] for argument in arguments]
    if found := [name for name in named if name in TAKEN]:
        raise UsageError(f"{found[0]} of lm_eval is not for use here; the model is --pretrained-model-dir")
    if not {"--tasks", "-t"} & set(named):
        raise UsageError("give the tasks as --tasks NAME, for example --tasks hellaswag,arc_easy")
    folder = open_run_folder(model)
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "lm_eval, the evaluation harness, is not installed; run: pip install 'lm_eval>=0.4.13,<0.5'"
        )
    from lm_eval.__main__ import cli_evaluate

    from qwen3_infer.evaluate.harness_model import Qwen3LM  # which registers itself

    own = {
        "pretrained": str(model.model_dir),
        "load_checkpoint": model.load_checkpoint,
        "strategy": model.strategy,
        "adapter": model.adapter,
        "device_target": device.target,
        "kernels": device.kernels,
        "threads": device.num_threads,
        "cache_dir": str(device.cache_dir),
    }
    # lm_eval cuts its values at commas that are not in quotes.
    given = {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}
    values = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    before = sys.argv
    sys.argv = ["lm_eval", "run", *arguments, "--model", "qwen3", "--model_args", *values]
    shared = (
        contextlib.nullcontext()
        if launch is None
        else open_model(folder, device, launch, quiet=True, note=logging.getLogger("lm_eval").warning)
    )
    try:
        with shared as Qwen3LM.shared_model:
            cli_evaluate()
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ConfigError(f"lm_eval: {' '.join(str(error).split())}") from error
    finally:
        sys.argv, Qwen3LM.shared_model = before, None

"""Checkpoints that a run wrote under another layout, kept aside until the present one has a whole checkpoint.

    earlier_layout/checkpoint, strategy          what `checkpoint` and `strategy` of the run's folder were
    earlier_layout/best/checkpoint, strategy     of its best step

So files of two layouts never lie in one folder, and each folder can be merged or gone on from as it is.
"""

import shutil
from pathlib import Path

from qwen3_model.errors import ConfigError
from qwen3_train.checkpoints.run_folder import BEST
from qwen3_train.checkpoints.source import EARLIER, newest_checkpoint
from qwen3_train.checkpoints.strategy_files import refuse_other_layout
from qwen3_train.settings.run import TrainSettings

PARTS = ("checkpoint", "strategy")


def make_room_for_layout(settings: TrainSettings, notes: list[str]) -> None:
    """Put the checkpoints of another layout aside; call while no process of the run lives.

    Args:
        settings: Settings with which the run is resumed.
        notes: Gets a sentence for the log.

    Raises:
        ConfigError: There are checkpoints and none can be read.
    """
    folder, aside = settings.output_dir, settings.output_dir / EARLIER
    newest = newest_checkpoint(folder, [])
    if newest is not None:
        newest.close()
        forget_earlier(folder)
    try:
        refuse_other_layout(settings)
    except ConfigError:
        if newest is None:
            # Whatever is there was never whole, and what it began from is still aside.
            _remove(folder)
            return
        for own, kept in ((folder, aside), (folder / BEST, aside / BEST)):
            if (own / "checkpoint").is_dir():
                _remove(kept)
                kept.mkdir(parents=True, exist_ok=True)
                # The strategies are small: with a copy there is no moment at which a checkpoint lacks them.
                shutil.copytree(own / "strategy", kept / "strategy")
                (own / "checkpoint").rename(kept / "checkpoint")
            _remove(own)
        notes.append(
            f"the layout is another one; the checkpoints before it are kept in {aside} until one of this "
            "layout is whole"
        )


def forget_earlier(folder: Path) -> None:
    """Remove what was kept aside, since the run in `folder` has a whole checkpoint.

    The best step stays until this layout has a better one.
    """
    aside = folder / EARLIER
    if not aside.is_dir():
        return
    _remove(aside)
    if newest_checkpoint(folder / BEST, []) is not None or not (aside / BEST).is_dir():
        shutil.rmtree(aside, ignore_errors=True)


def _remove(folder: Path) -> None:
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)

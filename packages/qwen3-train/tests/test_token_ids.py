"""Ids that the model has no row for are found before a run or named by the step that meets them."""

import pytest
from click.testing import CliRunner
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.errors import FormatError
from qwen3_train.cli import main
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import step_batches
from qwen3_train.data.gpt_dataset import DocumentOptions, build_dataset
from qwen3_train.settings.blend import Blend

OPTIONS = DocumentOptions(
    eod=None, pad=-1, eod_mask_loss=False, reset_position_ids=False, separate_documents=False
)


def documents(foreign):
    made = counting_documents(30)
    made[2][1] = foreign
    return made


@pytest.mark.parametrize("foreign", [64, -3])
def test_data_without_manifest_are_searched_for_foreign_ids(tmp_path, foreign):
    bare = write_tokens(tmp_path / "bare", documents(foreign))
    config = write_yaml(tmp_path / "config.yaml", tiny_run(tmp_path / "out", bare))
    result = CliRunner().invoke(main, ["launch", "--config", str(config)])
    assert result.exit_code == 1
    assert f"holds id {foreign}, but the model has vocab_size={TINY_MODEL['vocab_size']}" in result.output


def test_padding_in_data_without_manifest_is_no_foreign_id(tmp_path):
    bare = write_tokens(tmp_path / "bare", documents(-1))
    config = write_yaml(tmp_path / "config.yaml", tiny_run(tmp_path / "out", bare))
    result = CliRunner().invoke(main, ["inspect-data", "--config", str(config)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("foreign", [64, -3])
def test_a_step_names_the_id_that_has_no_row(tmp_path, foreign):
    prefix = write_tokens(tmp_path / "tiny", documents(foreign), eod_id=1)
    data = build_dataset(Blend((str(prefix),), None), None, "train", seq_length=16, num_samples=None, seed=0)
    plan = BatchPlan(micro_batch=len(data), num_micro_batches=1, num_samples=len(data), num_epochs=1)
    with pytest.raises(FormatError, match=f"the data hold id {foreign}, but the model has vocab_size=64"):
        step_batches(data, plan, OPTIONS, 1, 64)

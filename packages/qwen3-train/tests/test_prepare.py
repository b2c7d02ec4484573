"""What is known of a run before MindSpore is imported."""

import json
from dataclasses import replace

import pytest
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError
from qwen3_train.prepare.prepare import prepare_run
from qwen3_train.settings.model import read_model
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN


@pytest.fixture
def prepare(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)

    def prepared(**changes):
        path = write_yaml(tmp_path / "x.yaml", tiny_run(tmp_path / "out", prefix, **changes))
        return prepare_run(read_settings(load_run_config(path, [], TRAIN)), force=False)

    return prepared


def test_the_sizes_of_the_yaml_are_compared_with_those_of_the_folder_with_the_weights(prepare, tmp_path):
    other = replace(read_model(TINY_MODEL, None), hidden_size=48, num_layers=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(other.to_hf()), encoding="utf-8")
    where = tmp_path / "other" / "config.json"
    said = f"hidden_size=24 where {where} has 48, num_hidden_layers=2 where {where} has 3; take the YAML file"
    for key in ("pretrained_model_dir", "load_checkpoint"):
        with pytest.raises(ConfigError) as refused:
            prepare(**{key: str(tmp_path / "other"), "run_mode": "finetune"})
        assert said in str(refused.value)


def test_evaluations_that_take_most_of_the_time_are_named(prepare):
    def notes(interval, valid):
        changes = {
            "do_eval": True,
            "eval_step_interval": interval,
            "train_dataset__data_loader__sizes": [24, valid, 0],
        }
        return [note for note in prepare(**changes).notes if "each evaluation" in note]

    assert notes(3, 4) == []
    (told,) = notes(1, 9)
    assert "takes 9 held-out samples and comes after 4 trained ones: about 43% of the run's time" in told


def test_a_warmup_that_is_longer_than_the_run_is_named(prepare):
    assert not any("warm-up" in note for note in prepare().notes)
    notes = prepare(lr_schedule__warmup_steps=7).notes
    assert "the warm-up takes 7 steps and the run 6, so the learning rate is never reached" in notes

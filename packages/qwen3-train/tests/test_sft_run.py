"""Training on conversations: losses as transformers has them, packed or not, and the command as a whole."""

import json
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from click.testing import CliRunner
from sft_inputs import RECORDS, loader, sft_run, write_records
from train_inputs import write_yaml

from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.loading import init_model
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.cli import main
from qwen3_train.data.batches import BatchPlan, step_batches
from qwen3_train.data.sft_dataset import SHIFTED, SftDataset
from qwen3_train.data.sft_samples import make_samples
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.hf_loader import read_hf_data
from qwen3_train.settings.model import read_model
from qwen3_train.step.step import Evaluation

pytestmark = pytest.mark.usefixtures("share_graphs")

ATOL_LOSS = 1e-5  # reduction order
ATOL_PACKED = 1e-6  # the same sums in another order
# tools/parity names a file that transformers has just made.
FILE = os.environ.get("QWEN3_SFT_GOLDEN", Path(__file__).parent / "golden/sft.json")
GOLDEN = json.loads(Path(FILE).read_text(encoding="utf-8"))
LENGTH = 160


@pytest.fixture(scope="module")
def evaluation():
    ms.set_context(mode=ms.GRAPH_MODE)
    model = Qwen3ForCausalLM(read_model(GOLDEN["model"] | {"rope_theta": 10000.0}, None), make_kernels("CPU"))
    init_model(model, GOLDEN["seed"])
    return Evaluation(model)


@pytest.fixture
def dataset_of(tmp_path, demo_tokenizer_dir):
    tokenizer = Qwen3Tokenizer.from_dir(demo_tokenizer_dir)

    def make(records, **options):
        path = write_records(tmp_path / "records.jsonl", records)
        # transformers renders the conversations by Qwen3's own template.
        options = {"thoughts": "template"} | options
        data = read_hf_data(loader(path, tmp_path / "cache", seq_length=LENGTH, **options))
        return SftDataset(make_samples(data, tokenizer, quiet=True)[0], LENGTH, tokenizer.pad_id, None)

    return make


def step_loss(evaluation, dataset):
    """Return the loss of one step over the whole dataset, row by row."""
    count = len(dataset)
    plan = BatchPlan(micro_batch=1, num_micro_batches=count, num_samples=count, num_epochs=1)
    return sum(evaluation.run(batch) for batch in step_batches(dataset, plan, SHIFTED, 1, 4096))


def test_losses_equal_those_of_transformers_on_the_same_messages(evaluation, dataset_of):
    for golden in GOLDEN["samples"]:
        loss = step_loss(evaluation, dataset_of([{"messages": golden["messages"]}]))
        assert loss == pytest.approx(golden["loss"], abs=ATOL_LOSS)


def test_the_packed_loss_is_that_of_the_conversations_one_by_one(evaluation, dataset_of):
    records = [{"messages": golden["messages"]} for golden in GOLDEN["samples"]]
    packed, single = dataset_of(records), dataset_of(records, pack=None)
    assert len(packed) < len(single) == len(records)
    tokens = [int(single.sample(number).loss_mask_L.sum()) for number in range(len(single))]
    losses = [golden["loss"] for golden in GOLDEN["samples"]]
    loss = step_loss(evaluation, packed)
    assert loss == pytest.approx(step_loss(evaluation, single), abs=ATOL_PACKED)
    assert loss == pytest.approx(np.average(losses, weights=tokens), abs=ATOL_LOSS)


def launch(tmp_path, values, *arguments):
    config = write_yaml(tmp_path / "config.yaml", values)
    return CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])


def test_a_run_on_conversations_learns_and_leaves_a_model_that_stops(tmp_path, demo_tokenizer_dir):
    data = write_records(tmp_path / "records.jsonl", RECORDS)
    section = loader(data, tmp_path / "cache", seq_length=64)
    out = tmp_path / "out"
    result = launch(tmp_path, sft_run(out, demo_tokenizer_dir, section, runner_config__epochs=8))
    assert result.exit_code == 0, result.output
    losses = [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    assert losses[0] == pytest.approx(np.log(4096), abs=0.1)
    assert losses[-1] < losses[0] - 1
    tokenizer = Qwen3Tokenizer.from_dir(out)
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")]
    resumed = launch(
        tmp_path,
        sft_run(out, demo_tokenizer_dir, section, runner_config__epochs=9),
        "--resume_training",
        "True",
    )
    assert resumed.exit_code == 0, resumed.output
    other = loader(data, tmp_path / "cache", seq_length=64, empty_think="mask")
    refused = launch(
        tmp_path,
        sft_run(out, demo_tokenizer_dir, other, runner_config__epochs=10),
        "--resume_training",
        "True",
    )
    assert refused.exit_code == 1
    assert "was trained on other data or in another order" in refused.output
    assert ": empty_think was train, is mask)" in refused.output


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrained_model_dir": ""}, "instruction data need a tokenizer; give pretrained_model_dir"),
        ({"model__model_config__vocab_size": 64}, "has 4096 tokens, but the model has vocab_size=64"),
        ({"do_eval": True}, "do_eval=True needs held-out conversations; describe them in eval_dataset"),
        ({"do_eval": True, "eval_dataset": 3}, "eval_dataset=3 must be a section with keys"),
        ({"runner_config__batch_size": 7}, "one step takes 7 samples"),
        (
            {"train_dataset__data_loader": {"type": "SftFileDataLoader", "path": "json"}},
            "json.json is missing",
        ),
    ],
)
def test_a_run_that_cannot_work_is_one_sentence(tmp_path, demo_tokenizer_dir, changes, sentence):
    data = write_records(tmp_path / "records.jsonl", RECORDS)
    section = loader(data, tmp_path / "cache", pack=None)
    result = launch(tmp_path, sft_run(tmp_path / "out", demo_tokenizer_dir, section, **changes))
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seq_length": 128}, "eval_dataset has seq_length 128, train_dataset 64; give both the same"),
        ({"data_fils": "x"}, "unknown key eval_dataset.data_loader.data_fils (did you mean data_files?)"),
        ({"type": None}, "eval_dataset"),
        ({"handler": []}, "eval_dataset: train_dataset.data_loader.handler has no AlpacaInstructDataHandler"),
    ],
)
def test_an_evaluation_that_cannot_work_is_one_sentence(tmp_path, demo_tokenizer_dir, change, sentence):
    data = write_records(tmp_path / "records.jsonl", RECORDS)
    section = loader(data, tmp_path / "cache", seq_length=64)
    held_out = loader(data, tmp_path / "cache", seq_length=change.pop("seq_length", 64))
    held_out["data_loader"] |= change
    values = sft_run(tmp_path / "out", demo_tokenizer_dir, section, do_eval=True, eval_dataset=held_out)
    result = launch(tmp_path, values)
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_held_out_conversations_are_evaluated_with_the_loss_of_training(tmp_path, demo_tokenizer_dir):
    data = write_records(tmp_path / "records.jsonl", RECORDS)
    section = loader(data, tmp_path / "cache", seq_length=64, pack=None)
    values = sft_run(
        tmp_path / "out", demo_tokenizer_dir, section, do_eval=True, eval_step_interval=1,
        eval_dataset=loader(data, tmp_path / "cache", seq_length=64), runner_config__batch_size=6,
        runner_config__epochs=2,
    )  # fmt: skip
    result = launch(tmp_path, values)
    assert result.exit_code == 0, result.output
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    held_out = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    # The same records, packed otherwise: what is evaluated after a step is what the next one starts from.
    assert held_out[0] == pytest.approx(losses[1], abs=ATOL_LOSS)
    assert held_out[1] == pytest.approx(losses[2], abs=ATOL_LOSS)
    assert held_out[2] < held_out[1]

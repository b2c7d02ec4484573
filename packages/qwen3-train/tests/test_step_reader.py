"""Each replica reads its own samples alone, one step ahead; together they give what one process reads."""

import os
from dataclasses import replace

import numpy as np
import pytest
from train_inputs import counting_documents, write_tokens

from qwen3_model.errors import FormatError
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import evaluation_batches, step_batches
from qwen3_train.data.context_part import ContextPart
from qwen3_train.data.gpt_dataset import DocumentOptions, build_dataset
from qwen3_train.data.step_reader import StepReader
from qwen3_train.settings.blend import Blend

PLAIN = DocumentOptions(
    eod=1, pad=-1, eod_mask_loss=False, reset_position_ids=False, separate_documents=False
)
MASKED = replace(PLAIN, eod_mask_loss=True, reset_position_ids=True)
STEPS = 5


class Counting:
    """A dataset that notes which samples are read."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, []

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def text(self, number):
        self.read.append(number)
        return self.dataset.text(number)


@pytest.fixture
def dataset(tmp_path):
    prefixes = tuple(
        str(write_tokens(tmp_path / f"part{part}_document", counting_documents(80, seed=part), eod_id=1))
        for part in range(2)
    )
    return build_dataset(
        Blend(prefixes, (0.5, 0.5)), None, "train", seq_length=16, num_samples=8 * STEPS, seed=1
    )


def plan_of(replicas):
    return BatchPlan(
        micro_batch=2,
        num_micro_batches=4 // replicas,
        num_replicas=replicas,
        num_samples=8 * STEPS,
        num_epochs=1,
    )


def reader_of(dataset, options, replicas, replica, add_counts):
    return StepReader(
        dataset,
        plan_of(replicas),
        options,
        64,
        part=ContextPart(replica=replica),
        last_step=STEPS,
        add_counts=add_counts,
    )


@pytest.mark.parametrize("options", [PLAIN, MASKED])
def test_replicas_together_give_the_steps_of_one_process(dataset, options):
    watched = [Counting(dataset) for _ in range(2)]
    for step in range(1, STEPS + 1):
        whole = step_batches(dataset, plan_of(1), options, step, 64)
        counted = round(1 / max(float(batch.weights_BL.max()) for batch in whole))
        readers = [
            reader_of(watched[each], options, 2, each, lambda own, counted=counted: counted)
            for each in range(2)
        ]
        parts = [reader.batches(step) for reader in readers]
        for number, batch in enumerate(whole):
            got = parts[number % 2][number // 2]
            for name in ("input_ids_BL", "labels_BL", "weights_BL", "position_ids_BL"):
                np.testing.assert_array_equal(getattr(got, name), getattr(batch, name))
        for reader in readers:
            reader.close()
    for replica, each in enumerate(watched):
        assert {number // 2 % 2 for number in each.read} == {replica}


def test_the_count_is_asked_for_only_where_a_mask_may_differ(dataset):
    asked = []

    def add(own):
        asked.append(own)
        return 2 * own

    reader_of(dataset, PLAIN, 2, 0, add).batches(1)
    assert asked == []
    reader_of(dataset, MASKED, 2, 0, add).batches(1)
    assert len(asked) == 1
    alone = reader_of(dataset, MASKED, 1, 0, add)
    alone.batches(1)
    assert len(asked) == 1


def test_the_next_step_is_read_ahead_and_no_step_after_the_last(dataset):
    watched = Counting(dataset)
    reader = reader_of(watched, PLAIN, 1, 0, None)
    for step in range(1, STEPS + 1):
        reader.batches(step)
        reader._pool.submit(lambda: None).result()  # after what is read ahead
        assert len(watched.read) == 8 * min(step + 1, STEPS)
    assert watched.read == list(range(8 * STEPS))


def test_a_token_file_that_is_cut_while_it_is_read_is_a_sentence_and_no_bus_error(dataset):
    reader = reader_of(dataset, PLAIN, 1, 0, None)
    reader.batches(1)
    path = dataset.datasets[0].tokens.prefix.with_name("part0_document.bin")
    os.truncate(path, 100)
    with pytest.raises(
        FormatError, match=r"part0_document.bin was cut to 100 bytes while the run was reading it"
    ):
        [reader.batches(step) for step in (2, 3)]  # one of them may have been read before


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_file_that_is_cut_between_the_look_and_the_read_is_a_sentence(dataset, ending, tmp_path):
    tokens = dataset.datasets[1].tokens
    number = next(each for each in range(len(dataset)) if dataset.files_N[each] == 1)
    whole = dataset.text(number)
    os.truncate(tokens.prefix.with_name(f"part1_document{ending}"), 10)  # all of its pages are gone
    with pytest.raises(FormatError, match=rf"part1_document\{ending} was cut to 10 bytes while the run"):
        dataset.text(number)
    assert len(whole) == 17


def test_what_is_left_of_the_last_page_is_not_taken_for_tokens(dataset):
    # The rest of a page reads as zeros, without an error of the system.
    path = dataset.datasets[1].tokens.prefix.with_name("part1_document.bin")
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(FormatError, match=r"part1_document.bin was cut"):
        reader_of(dataset, PLAIN, 1, 0, None).batches(1)


def test_replicas_evaluate_each_held_out_sample_once(dataset):
    watched = Counting(dataset)
    told = [
        list(evaluation_batches(watched, 7, 2, MASKED, 64, replica=each, num_replicas=2)) for each in range(2)
    ]
    assert sorted(watched.read) == list(range(7))
    whole = list(evaluation_batches(dataset, 7, 2, MASKED, 64))
    assert sum(counted for part in told for _, counted in part) == sum(counted for _, counted in whole)
    assert [len(part) for part in told] == [2, 2]

"""Instruction data: ids and labels as transformers has them, shifted once, packed without mixing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sft_inputs import RECORDS, loader, write_records

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.packing import ChatSample
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.data.batches import BatchPlan, step_batches
from qwen3_train.data.sft_dataset import SHIFTED, SftDataset, SftSamples
from qwen3_train.data.sft_samples import make_samples, pack_samples
from qwen3_train.data.vicuna_prompt import SYSTEM
from qwen3_train.settings.hf_loader import ChatSettings, read_hf_data

# tools/parity names a file that transformers has just made.
FILE = os.environ.get("QWEN3_SFT_GOLDEN", Path(__file__).parent / "golden/sft.json")
GOLDEN = json.loads(Path(FILE).read_text(encoding="utf-8"))
IGNORED = -100


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


@pytest.fixture
def samples_of(tmp_path, tokenizer):
    """Return the samples and notes of records; keywords as of `loader`."""

    def make(records, **options):
        path = write_records(tmp_path / "records.jsonl", records)
        return make_samples(read_hf_data(loader(path, tmp_path / "cache", **options)), tokenizer, quiet=True)

    return make


def unshifted(sample):
    """Return ids and labels as before the shift, and the length without padding."""
    labels_L = np.where(sample.loss_mask_L > 0, sample.labels_L, IGNORED)
    return sample.input_ids_L.tolist(), [IGNORED, *labels_L[:-1].tolist()]


def learned(samples, tokenizer, index=0):
    """Return the text with loss of a conversation."""
    begins = np.concatenate([[0], np.cumsum(samples.lengths_S)])
    part = slice(begins[index], begins[index + 1])
    return tokenizer.decode(samples.ids_T[part][samples.mask_T[part] == 1], skip_special=False)


@pytest.mark.parametrize("number", range(len(GOLDEN["samples"])))
def test_ids_and_labels_equal_those_of_transformers(samples_of, tokenizer, number):
    golden = GOLDEN["samples"][number]
    samples, notes = samples_of([{"messages": golden["messages"]}], seq_length=256, thoughts="template")
    ids, labels = unshifted(SftDataset(samples, 256, tokenizer.pad_id, None).sample(0))
    count = len(golden["ids"])
    assert ids[:count] == golden["ids"]
    assert labels[:count] == golden["labels"]
    assert set(labels[count:]) == {IGNORED}
    assert notes == []


def test_position_t_is_trained_on_token_t_plus_1_and_on_no_other():
    samples = SftSamples(
        np.array([10, 11, 12, 13, 20, 21, 22], np.int32),
        np.array([0, 0, 1, 1, 0, 1, 1], np.uint8),
        np.array([4, 3], np.int32),
        np.array([0, 2]),
    )
    sample = SftDataset(samples, 9, 99, None).sample(0)
    assert sample.input_ids_L.tolist() == [10, 11, 12, 13, 20, 21, 22, 99, 99]
    assert sample.labels_L.tolist() == [11, 12, 13, 20, 21, 22, 99, 99, 99]
    assert sample.loss_mask_L.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0]
    assert sample.position_ids_L.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert sample.document_ids_L.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_a_first_token_with_loss_is_not_predicted_from_the_conversation_before():
    ones = np.ones(4, np.uint8)
    samples = SftSamples(np.arange(4, dtype=np.int32), ones, np.array([2, 2], np.int32), np.array([0, 2]))
    assert SftDataset(samples, 4, 0, None).sample(0).loss_mask_L.tolist() == [1, 0, 1, 0]


def test_data_that_fit_in_one_pack_give_one_sample(samples_of, tokenizer):
    samples, _ = samples_of(RECORDS[:3])
    dataset = SftDataset(samples, 128, tokenizer.pad_id, None)
    assert len(dataset) == 1
    assert set(dataset.sample(0).document_ids_L.tolist()) == {0, 1, 2, 3}
    assert len(SftDataset(samples_of(RECORDS[:3], pack="truncate")[0], 128, 0, None)) == 1
    assert len(SftDataset(samples_of(RECORDS[:3], pack=None)[0], 128, 0, None)) == 3


def test_truncate_cuts_where_a_sample_is_full_and_forgets_nothing():
    chat = ChatSettings(
        seq_length=5, prompt_style="qwen", loss_on="all", empty_think="train", thoughts="keep",
        too_long="truncate",
        on_bad_record="fail", pack_strategy="truncate",
    )  # fmt: skip
    parts = [ChatSample(np.arange(n, dtype=np.int32), np.ones(n, np.uint8)) for n in (3, 4, 3)]
    samples = pack_samples(parts, chat)
    assert samples.lengths_S.tolist() == [3, 2, 2, 3]  # the second conversation is cut in two
    assert samples.firsts_P.tolist() == [0, 2, 4]
    assert samples.ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]


def test_every_answer_or_the_last_and_the_empty_thought_as_asked(samples_of, tokenizer):
    messages = GOLDEN["samples"][1]["messages"]
    thought = "<think>\nTwice 4 is 8.\n</think>\n\n8<|im_end|>"
    empty = "<think>\n\n</think>\n\n"
    assert learned(samples_of([{"messages": messages}])[0], tokenizer) == empty + "4<|im_end|>" + thought
    as_rendered = samples_of([{"messages": messages}], thoughts="template")[0]
    assert learned(as_rendered, tokenizer) == "4<|im_end|>" + thought
    assert learned(samples_of([{"messages": messages}], loss_on="last")[0], tokenizer) == thought
    answer = "one, as you wish.<|im_end|>"
    assert learned(samples_of(RECORDS[:1])[0], tokenizer) == empty + answer
    assert learned(samples_of(RECORDS[:1], empty_think="mask")[0], tokenizer) == answer


def test_share_gpt_and_alpaca_say_the_same(samples_of):
    record = {"instruction": "Name it.", "input": "sky", "output": "Blue."}
    turns = [{"from": "human", "value": "Name it.\n\nsky"}, {"from": "gpt", "value": "Blue."}]
    alpaca, share = samples_of([record])[0], samples_of([{"conversations": turns}])[0]
    assert alpaca.digest() == share.digest()


def test_the_vicuna_style_is_mindformers_prompt_with_loss_on_the_answer(samples_of, tokenizer):
    record = {"instruction": "Name it.", "input": "sky", "output": "Blue."}
    samples, _ = samples_of([record], prompt_style="vicuna", seq_length=256)
    text = tokenizer.decode(samples.ids_T, skip_special=False)
    assert text.startswith(f"{SYSTEM} USER: Below is an instruction")
    assert text.endswith("Instruction:\nName it.\n\n### Input:\nsky\n\n### Response: ASSISTANT: Blue.</s>")
    assert learned(samples, tokenizer) == " Blue.</s>"


def test_an_answer_that_is_cut_away_is_counted_and_named(samples_of):
    long = {"instruction": "word " * 200, "input": "", "output": "never seen"}
    half = {"instruction": "Count.", "input": "", "output": "word " * 200}
    samples, notes = samples_of([RECORDS[0], long, half])
    assert len(samples.lengths_S) == 2
    assert samples.lengths_S.max() == 128
    assert notes[0].startswith("1 conversation left out, since no token to learn lies within seq_length")
    assert "record 1 (" in notes[0]
    assert notes[1] == "1 conversation cut to seq_length 128"
    again, told = samples_of([RECORDS[0], long, half])  # from the cache
    assert again.digest() == samples.digest()
    assert told[0].startswith("samples of an earlier run: ")
    assert told[1:] == notes
    with pytest.raises(FormatError, match=r"no conversation is left to learn from; 1 conv.*record 0"):
        samples_of([long])
    assert len(samples_of([RECORDS[0], half], too_long="drop")[0].lengths_S) == 1


def test_handlers_run_the_datasets_own_methods_in_order(samples_of, tokenizer):
    steps = [
        {"type": "rename_column", "original_column_name": "answer", "new_column_name": "output"},
        {"type": "skip", "n": 1},
        {"type": "take", "n": 2},
    ]
    records = [{"instruction": r["instruction"], "answer": r["output"]} for r in RECORDS]
    samples, _ = samples_of(records, steps=steps, empty_think="mask")
    assert [learned(samples, tokenizer, i).split(",")[0] for i in range(2)] == ["two", "three"]
    assert len(samples.lengths_S) == 2
    assert len(samples_of(records, steps=[steps[0], {"type": "take", "n": 2000}])[0].lengths_S) == 6


def test_other_records_or_settings_are_not_taken_from_the_cache(samples_of):
    first, _ = samples_of(RECORDS)
    for records, options in ((RECORDS[::-1], {}), (RECORDS, {"empty_think": "mask"})):
        other, notes = samples_of(records, **options)
        assert notes == []
        assert other.digest() != first.digest()


def test_shuffling_keeps_every_pack_and_depends_on_the_seed(samples_of, tokenizer):
    samples, _ = samples_of(RECORDS, pack=None)
    orders = [SftDataset(samples, 128, 0, seed).order(0).tolist() for seed in (None, 1, 1, 2)]
    assert orders[0] == [0, 1, 2, 3, 4, 5]
    assert orders[1] == orders[2] != orders[3]
    assert sorted(orders[1]) == orders[0]


def test_every_epoch_has_an_order_of_its_own_whatever_came_before(samples_of, tokenizer):
    samples, _ = samples_of(RECORDS, pack=None)
    plan = BatchPlan(micro_batch=2, num_micro_batches=1, num_samples=6, num_epochs=3)

    def ids_of(seed, steps):
        dataset = SftDataset(samples, 128, 0, seed)
        batches = [step_batches(dataset, plan, SHIFTED, step, 4096)[0] for step in steps]
        return [row.tolist() for batch in batches for row in batch.input_ids_BL]

    epochs = [ids_of(1, range(3 * epoch + 1, 3 * epoch + 4)) for epoch in range(3)]
    assert len({tuple(map(tuple, rows)) for rows in epochs}) == 3
    assert all(sorted(rows) == sorted(ids_of(None, (1, 2, 3))) for rows in epochs)
    # Begun in the middle of the second epoch, as a resumed run does.
    assert ids_of(1, (5, 6)) == epochs[1][2:]
    assert ids_of(None, range(1, 4)) == ids_of(None, range(4, 7))


def test_a_record_without_answer_is_one_sentence_or_skipped(samples_of):
    records = [RECORDS[0], {"instruction": "Go.", "input": "", "output": " "}]
    with pytest.raises(FormatError, match=r"record 1 has an empty answer in message 1; mend it, or set"):
        samples_of(records)
    samples, notes = samples_of(records, on_bad_record="skip")
    assert len(samples.lengths_S) == 1
    assert notes == ["1 record skipped: record 1 has an empty answer in message 1"]


@pytest.mark.parametrize(
    ("records", "options", "sentence"),
    [
        ([{"prompt": "a", "answer": "b"}], {}, "the dataset has the columns answer, prompt, but a conv"),
        ([{"messages": []}], {"prompt_style": "vicuna"}, "has the columns messages, but a conversation"),
        (RECORDS, {"steps": [{"type": "take", "n": 0}]}, "gives no record after its handlers"),
        (RECORDS, {"steps": [{"type": "skip", "n": -1}]}, "handler: skip.n=-1. fails"),
        (
            RECORDS,
            {"steps": [{"type": "rename_column", "original_column_name": "x", "new_column_name": "y"}]},
            "rename_column.* fails on columns instruction, input, output",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_one_sentence(samples_of, records, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        samples_of(records, **options)


def test_a_file_that_is_no_json_is_one_sentence(tmp_path, tokenizer):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": ', encoding="utf-8")
    with pytest.raises(FormatError, match=r"data_files: .*bad\.jsonl, line 1 is not JSON"):
        make_samples(read_hf_data(loader(path, tmp_path / "cache")), tokenizer)
    with pytest.raises(ConfigError, match=r"absent\.jsonl does not exist"):
        make_samples(read_hf_data(loader(tmp_path / "absent.jsonl", tmp_path / "cache")), tokenizer)


CHAT = {"type": "AlpacaInstructDataHandler", "seq_length": 64}
PACK = {"type": "PackingHandler", "seq_length": 64}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"path": None}, r"data_loader.path is missing"),
        ({"load_func": "read_csv"}, r"load_func='read_csv' is not implemented"),
        ({"handler": []}, r"handler has no AlpacaInstructDataHandler"),
        ({"handler": [PACK, CHAT]}, r"handler.0.type='PackingHandler' is out of place"),
        ({"handler": [CHAT, {"type": "take", "n": 1}]}, r"handler.1.type='take' is out of place"),
        ({"handler": [{"type": "PackingHander"}]}, r"is not implemented; did you mean PackingHandler"),
        ({"handler": [{"type": "take", "seed": 1}]}, r"handler.0 \(take\) does not take seed; it takes n"),
        ({"handler": [CHAT, PACK | {"seq_length": 32}]}, r"need one common seq_length .* found \[32, 64\]"),
        ({"handler": [CHAT | {"prompt_style": "alpaca"}]}, r"prompt_style='alpaca' is none of qwen, vicuna"),
        ({"handler": [CHAT, PACK | {"pack_strategy": "x"}]}, r"pack_strategy='x' is none of pack, truncate"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(changes, sentence):
    section = {"type": "HFDataLoader", "path": "json", "data_files": "x", "handler": [CHAT, PACK]} | changes
    with pytest.raises(ConfigError, match=sentence):
        read_hf_data({"data_loader": section})

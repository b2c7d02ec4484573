"""Several datasets of conversations in one run: shares, passes, refusals."""

import numpy as np
import pytest
from sft_inputs import loader, sft_run, write_records
from train_inputs import settings_of, tiny_run

from qwen3_model.errors import ConfigError
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.data.batches import read_sample
from qwen3_train.data.sft_blend import SftBlend, join_samples
from qwen3_train.data.sft_dataset import SHIFTED, SftDataset, SftSamples
from qwen3_train.data.sft_prepare import prepare_sft


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


def marked(first, count):
    """Return `count` conversations of three tokens, of which the first names it."""
    ids = [(first + number, 7, 8) for number in range(count)]
    lengths = np.full(count, 3, np.int32)
    mask = np.tile([0, 1, 1], count).astype(np.uint8)
    return SftSamples(np.array(ids, np.int32).ravel(), mask, lengths, np.arange(count + 1, dtype=np.int64))


def names(dataset, epoch=0):
    return [int(dataset.sample(number, epoch).input_ids_L[0]) for number in range(len(dataset))]


@pytest.mark.parametrize("seed", [None, 5])
def test_a_blend_keeps_its_shares_and_reads_each_dataset_whole_before_again(seed):
    datasets = [SftDataset(marked(100, 5), 4, 99, seed), SftDataset(marked(200, 3), 4, 99, seed)]
    blend = SftBlend(datasets, (0.75, 0.25), 8)
    read = [name for epoch in range(5) for name in names(blend, epoch)]
    assert [sum(name < 200 for name in read[first : first + 8]) for first in range(0, 40, 8)] == [6] * 5
    low, high = ([name for name in read if (name < 200) == is_low] for is_low in (True, False))
    for taken, all_names in ((low, set(range(100, 105))), (high, set(range(200, 203)))):
        for first in range(0, len(taken) - len(all_names) + 1, len(all_names)):
            assert set(taken[first : first + len(all_names)]) == all_names
    if seed is None:
        assert low[:6] == [100, 101, 102, 103, 104, 100]
    else:
        assert low[:5] != low[5:10]


def test_without_weights_every_sample_of_all_is_read_once():
    joint = join_samples([marked(100, 5), marked(200, 3)])
    assert names(SftDataset(joint, 4, 99, None)) == [*range(100, 105), *range(200, 203)]
    assert joint.lengths_S.tolist() == [3] * 8
    assert joint.mask_T.tolist() == [0, 1, 1] * 8


def section(tmp_path, counts, weights=(None, None), **changes):
    """Return a train_dataset of two files whose answers name them."""
    entries = []
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        records = [{"instruction": "q", "output": f"file {number}"}] * count
        path = write_records(tmp_path / f"{number}.jsonl", records)
        one = loader(path, tmp_path / "cache", pack=None)["data_loader"]
        kept = {key: one[key] for key in ("path", "data_files", "handler")}
        entries.append(kept if weight is None else {**kept, "weight": weight})
    shared = {"type": "HFDataLoader", "cache_dir": str(tmp_path / "cache"), "datasets": entries}
    return {"data_loader": {**shared, **changes}}


def prepared(tmp_path, demo_tokenizer_dir, values):
    settings = settings_of(sft_run(tmp_path / "out", demo_tokenizer_dir, values))
    return settings, prepare_sft(settings, settings.data, [])


@pytest.mark.parametrize(
    ("weights", "sizes", "counts"),
    [((None, None), None, (4, 2)), ((0.2, 0.8), [10], (2, 8)), ((3, 1), [8], (6, 2))],
)
def test_a_run_reads_its_datasets_in_their_shares(
    tmp_path, demo_tokenizer_dir, tokenizer, weights, sizes, counts
):
    values = section(tmp_path, (4, 2), weights, **({"sizes": sizes} if sizes else {}))
    settings, data = prepared(tmp_path, demo_tokenizer_dir, values)
    texts = [
        tokenizer.decode(read_sample(data.train, number, SHIFTED).input_ids_L, skip_special=True)
        for number in range(min(len(data.train), settings.data.num_train or len(data.train)))
    ]
    assert tuple(sum(f"file {number}" in text for text in texts) for number in (0, 1)) == counts
    assert data.fingerprint(1) == prepared(tmp_path, demo_tokenizer_dir, values)[1].fingerprint(1)
    if sizes:
        values["data_loader"]["datasets"][0]["weight"] = 0.5
        assert data.fingerprint(1) != prepared(tmp_path, demo_tokenizer_dir, values)[1].fingerprint(1)


@pytest.mark.parametrize(
    ("weights", "changes", "sentence"),
    [
        ((0.2, 0.8), {}, r"datasets has weights, but sizes=None does not say how many"),
        ((0.2, 0.8), {"sizes": [0]}, r"datasets has weights, but sizes=\[0\]"),
        ((0.2, None), {"sizes": [8]}, r"datasets\.1\.weight=None must be a number above 0"),
        ((0.2, -1), {"sizes": [8]}, r"datasets\.1\.weight=-1"),
        ((0.2, 0), {"sizes": [8]}, r"datasets\.1\.weight=0"),
        ((None, None), {"sizes": [8]}, r"sizes=\[8\] needs a weight in each entry"),
        ((None, None), {"datasets": []}, r"datasets is empty"),
        ((None, None), {"path": "json"}, r"path stands beside datasets; move it into their entries"),
        ((None, None), {"handler": [{"type": "take"}]}, r"handler stands beside datasets"),
    ],
)
def test_a_list_of_datasets_that_cannot_be_meant_is_one_sentence(
    tmp_path, demo_tokenizer_dir, weights, changes, sentence
):
    values = section(tmp_path, (2, 2), weights, **changes)
    with pytest.raises(ConfigError, match=sentence):
        settings_of(sft_run(tmp_path / "out", demo_tokenizer_dir, values))


def test_entries_of_other_lengths_or_with_unknown_keys_are_refused(tmp_path, demo_tokenizer_dir):
    values = section(tmp_path, (2, 2))
    values["data_loader"]["datasets"][1]["handler"][0]["seq_length"] = 64
    with pytest.raises(ConfigError, match=r"datasets have seq_length \[64, 128\]"):
        settings_of(sft_run(tmp_path / "out", demo_tokenizer_dir, values))
    values = section(tmp_path, (2, 2))
    values["data_loader"]["datasets"][1]["handler"] = []
    with pytest.raises(ConfigError, match=r"datasets\.1: .*AlpacaInstructDataHandler"):
        settings_of(sft_run(tmp_path / "out", demo_tokenizer_dir, values))


def test_token_files_may_stand_in_the_list(tmp_path):
    name = "train_dataset__data_loader__"
    changes = {f"{name}config__data_path": None, f"{name}sizes": [8]}
    entries = [{"path": "a", "weight": 3}, {"path": "b", "weight": 1}]
    data = settings_of(tiny_run(tmp_path, "", **changes, **{f"{name}datasets": entries})).data
    assert (data.train.prefixes, data.train.weights) == (("a", "b"), (0.75, 0.25))
    plain = settings_of(
        tiny_run(tmp_path, "", **changes, **{f"{name}datasets": [{"path": "a"}, {"path": "b"}]})
    ).data
    assert (plain.train.prefixes, plain.train.weights) == (("a", "b"), None)
    with pytest.raises(ConfigError, match=r"datasets and config\.data_path; give one or the other"):
        settings_of(tiny_run(tmp_path, "prefix", **{f"{name}datasets": entries, f"{name}sizes": [8]}))
    bad = {f"{name}datasets": [{"path": "a", "data_files": "x"}]}
    with pytest.raises(ConfigError, match=r"datasets\.0 of token files takes path and weight"):
        settings_of(tiny_run(tmp_path, "", **changes, **bad))
    no_sizes = changes | {f"{name}sizes": [0], f"{name}datasets": entries}
    with pytest.raises(ConfigError, match="has weights in data_path, but sizes="):
        settings_of(tiny_run(tmp_path, "", **no_sizes))

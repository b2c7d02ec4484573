import numpy as np
import pytest
from train_inputs import counting_documents, write_tokens

from qwen3_model.errors import ConfigError, FormatError
from qwen3_train.data.gpt_dataset import DocumentOptions, build_dataset, make_sample
from qwen3_train.settings.blend import Blend

PLAIN = {
    "eod": 1,
    "pad": -1,
    "eod_mask_loss": False,
    "reset_position_ids": False,
    "separate_documents": False,
}


def options(**changes):
    return DocumentOptions(**(PLAIN | changes))


def build(prefix, **changes):
    arguments = {"split": None, "part": "train", "seq_length": 8, "num_samples": None, "seed": 3} | changes
    split, part = arguments.pop("split"), arguments.pop("part")
    blend = prefix if isinstance(prefix, Blend) else Blend((str(prefix),), None)
    return build_dataset(blend, split, part, **arguments)


def test_samples_are_the_shuffled_documents_end_to_end(tmp_path):
    documents = counting_documents(9)
    dataset = build(write_tokens(tmp_path / "a", documents))
    laid_out = np.concatenate([documents[number] for number in dataset.index.documents])
    for number in range(len(dataset)):
        begin = int(dataset.index.order[number]) * 8
        np.testing.assert_array_equal(dataset.text(number), laid_out[begin : begin + 9])
    assert len(dataset) == (len(laid_out) - 1) // 8
    assert sorted(dataset.index.order.tolist()) == list(range(len(dataset)))


def test_two_epochs_read_every_token_twice(tmp_path):
    documents = counting_documents(9)
    tokens = sum(len(document) for document in documents)
    dataset = build(write_tokens(tmp_path / "a", documents), num_samples=2 * tokens // 8 - 1)
    read = np.concatenate([dataset.text(number)[:-1] for number in range(len(dataset))])
    counted = np.bincount(read, minlength=64)
    twice = 2 * np.bincount(np.concatenate(documents), minlength=64)
    assert (counted <= twice).all()
    assert twice.sum() - counted.sum() <= 8  # the tail that fills no sample


def test_split_parts_share_no_document(tmp_path):
    prefix = write_tokens(tmp_path / "a", counting_documents(20))
    train, valid = build(prefix, split="90,10,0"), build(prefix, split="90,10,0", part="valid")
    assert set(train.index.documents.tolist()) == set(range(18))
    assert set(valid.index.documents.tolist()) == {18, 19}
    assert build(prefix, split="1,0,0", part="valid") is None


def test_a_blend_takes_each_files_own_samples(tmp_path):
    low = write_tokens(tmp_path / "low", [[2] * 100])
    high = write_tokens(tmp_path / "high", [[3] * 100])
    dataset = build(Blend((str(low), str(high)), (0.75, 0.25)), num_samples=12)
    assert len(dataset) == 12
    assert [int(dataset.text(number)[0]) for number in range(12)].count(2) == 9


def test_data_shorter_than_one_sample_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train part has 5 tokens in 1 document, fewer than one sample"):
        build(write_tokens(tmp_path / "a", [[2, 3, 4, 5, 1]]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"nowhere.idx is missing"):
        build(tmp_path / "nowhere")


TEXT = np.array([5, 6, 1, 7, 1, 8, 9, 1, 4])


def test_labels_are_the_next_tokens_shifted_once():
    sample = make_sample(TEXT, options())
    assert sample.input_ids_L.tolist() == [5, 6, 1, 7, 1, 8, 9, 1]
    assert sample.labels_L.tolist() == [6, 1, 7, 1, 8, 9, 1, 4]
    assert sample.loss_mask_L.tolist() == [1] * 8
    assert sample.position_ids_L.tolist() == list(range(8))
    assert sample.document_ids_L.tolist() == [0] * 8


def test_eod_mask_loss_drops_guesses_made_from_the_end_of_a_document():
    assert make_sample(TEXT, options(eod_mask_loss=True)).loss_mask_L.tolist() == [1, 1, 0, 1, 0, 1, 1, 0]


def test_positions_start_again_after_each_end():
    sample = make_sample(TEXT, options(reset_position_ids=True))
    assert sample.position_ids_L.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


def test_documents_are_numbered_and_own_their_end():
    sample = make_sample(TEXT, options(separate_documents=True))
    assert sample.document_ids_L.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_padding_carries_no_loss_and_becomes_a_real_id():
    sample = make_sample(np.array([5, 6, -1, -1]), options())
    assert sample.loss_mask_L.tolist() == [1, 0, 0]
    assert sample.input_ids_L.tolist() == [5, 6, 0]
    assert sample.labels_L.tolist() == [6, 0, 0]


def test_weights_without_a_number_of_samples_are_refused(tmp_path):
    low, high = (write_tokens(tmp_path / name, [[2] * 100]) for name in ("low", "high"))
    with pytest.raises(ConfigError, match="data_path has weights, which need a number of samples"):
        build(Blend((str(low), str(high)), (0.99, 0.01)))
    # A single file is read once whatever its weight says.
    assert len(build(Blend((str(low),), (1.0,)))) == 12

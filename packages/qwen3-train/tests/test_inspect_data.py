"""What `inspect-data` shows is what the model gets."""

from click.testing import CliRunner
from sft_inputs import RECORDS, loader, sft_run, write_records
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_train.cli import main
from qwen3_train.data.inspect import LEARNED, RESET


def inspect(tmp_path, values, *arguments):
    config = write_yaml(tmp_path / "config.yaml", values)
    return CliRunner().invoke(main, ["inspect-data", "--config", str(config), *arguments])


def test_answers_are_marked_and_documents_and_padding_told_apart(tmp_path, demo_tokenizer_dir):
    data = write_records(tmp_path / "records.jsonl", RECORDS[:2])
    values = sft_run(tmp_path / "out", demo_tokenizer_dir, loader(data, tmp_path / "cache"))
    result = inspect(tmp_path, values)
    assert result.exit_code == 0, result.output
    answer = "<think>\n\n</think>\n\none, as you wish.<|im_end|>"
    assert f"user\nSay one.<|im_end|>\n<|im_start|>assistant\n[[{answer}]]\n" in result.output
    assert "-- document 1: tokens " in result.output
    assert "tokens of padding" in result.output
    coloured = inspect(tmp_path, values, "--color", "--samples", "1")
    assert f"{LEARNED}{answer}{RESET}" in coloured.output
    assert not (tmp_path / "out").exists()


def test_what_becomes_of_thoughts_is_said_and_seen(tmp_path, demo_tokenizer_dir):
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1", "reasoning_content": "r1"},
    ]
    data = write_records(tmp_path / "records.jsonl", [{"messages": turns * 2}])
    for thoughts, samples in (("keep", 1), ("split", 2), ("template", 1)):
        section = loader(data, tmp_path / "cache", pack=None, thoughts=thoughts)
        output = inspect(tmp_path, sft_run(tmp_path / "out", demo_tokenizer_dir, section)).output
        said = "1 sample" if samples == 1 else f"{samples} samples"
        assert f"{said} of 128 tokens; loss_on all, thoughts {thoughts}, empty_think train" in output
        assert output.count("[[<think>\nr1\n</think>\n\n1<|im_end|>]]") == (
            1 if thoughts == "template" else 2
        )
        noted = "1 answers are learned without the thought of their record" in output
        assert noted == (thoughts == "template")


def test_bytes_of_a_record_do_not_reach_the_terminal_as_commands(tmp_path, demo_tokenizer_dir):
    record = {"instruction": "\x1b]0;title\x07\x1b[31m", "output": "red\r\x9b1m"}
    data = write_records(tmp_path / "records.jsonl", [record])
    output = inspect(
        tmp_path, sft_run(tmp_path / "out", demo_tokenizer_dir, loader(data, tmp_path / "c"))
    ).output
    assert not set("\x1b\x07\r\x9b") & set(output)
    assert "\\x1b]0;title\\x07\\x1b[31m" in output
    assert "red\\x0d\\x9b1m" in output


def test_the_table_has_the_next_token_as_label(tmp_path, demo_tokenizer_dir):
    data = write_records(tmp_path / "records.jsonl", RECORDS[:1])
    values = sft_run(tmp_path / "out", demo_tokenizer_dir, loader(data, tmp_path / "cache", pack=None))
    rows = [line.split() for line in inspect(tmp_path, values, "--table").output.splitlines()[4:]]
    rows = [row for row in rows if row[0].isdigit()]
    labels = {int(row[0]): int(row[3]) for row in rows if row[3] != "-"}
    ids = {int(row[0]): int(row[2]) for row in rows}
    assert len(labels) > 5
    assert all(ids[place + 1] == label for place, label in labels.items())


def test_token_files_are_shown_as_ids_without_a_tokenizer(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)
    values = tiny_run(tmp_path / "out", prefix)
    values["train_dataset"]["data_loader"]["config"]["reset_attention_mask"] = True
    result = inspect(tmp_path, values, "--samples", "1")
    assert result.exit_code == 0, result.output
    assert "sample 0: 16 of 16 positions carry loss" in result.output
    refused = inspect(tmp_path, values, "--first", "10000")
    assert refused.exit_code == 1
    assert "--start 10000 is none of them" in refused.output

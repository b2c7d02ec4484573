"""`qwen3-infer score` against transformers' log-probabilities, token by token and in sum."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.device import Device
from qwen3_infer.evaluate.score_windows import Score, Window, cut_windows
from qwen3_infer.processes.local import open_local
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import HEADER, MAGIC

GOLDEN_DIR = Path(os.environ.get("QWEN3_GENERATIONS_DIR", Path(__file__).parent / "golden")) / "scored"
ATOL_F32 = 2e-4  # log-probabilities of -20 after sums in another order


@pytest.fixture(scope="module")
def scored(tmp_path_factory, demo_tokenizer_dir, wikitext_path):
    """Return a model folder, its tokenizer and text, and what transformers found."""
    directory = tmp_path_factory.mktemp("scored") / "model"
    shutil.copytree(demo_tokenizer_dir, directory)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN_DIR / name, directory)
    cases = json.loads((GOLDEN_DIR / "scores.json").read_text("utf-8"))
    return SimpleNamespace(
        dir=directory,
        tokenizer=Qwen3Tokenizer.from_dir(directory),
        text=wikitext_path.read_text("utf-8"),
        cases={case["name"]: case for case in cases},
    )


@pytest.fixture(scope="module", params=["portable", "native"])
def scorer(scored, cache_dir, request):
    device = Device(target="CPU", kernels=request.param, num_threads=2, cache_dir=cache_dir)
    return open_local(scored.dir, device, quiet=True, note=pytest.fail).scorer(256)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["score", *map(str, arguments)])


def test_every_token_is_predicted_once_with_as_much_before_it_as_promised():
    for num_tokens in (0, 1, 2, 5, 63, 64, 65, 100, 129, 200):
        for window, stride in ((1, 1), (7, 3), (64, 64), (64, 1), (64, 32), (500, 250)):
            cuts = list(cut_windows(num_tokens, window, stride))
            targets = [target for cut in cuts for target in range(cut.first, cut.end + 1)]
            assert targets == list(range(1, num_tokens)), (num_tokens, window, stride)
            for cut in cuts:
                assert 1 <= cut.num_read <= window
                assert cut.num_targets == cut.end - cut.first + 1
            for cut in cuts[1:]:
                assert cut.num_read == window
                assert cut.first - cut.start >= window - stride + 1
    assert list(cut_windows(10, 4, 2)) == [
        Window(0, 1, 4), Window(2, 5, 6), Window(4, 7, 8), Window(5, 9, 9),
    ]  # fmt: skip


def test_scores_add_up_and_know_what_they_cannot_say():
    both = Score(num_tokens=2, num_bytes=10, nll=3.0) + Score(num_tokens=1, num_bytes=2, nll=0.0)
    assert both == Score(num_tokens=3, num_bytes=12, nll=3.0)
    assert both.perplexity == pytest.approx(math.e)
    assert both.bits_per_byte == pytest.approx(3 / math.log(2) / 12)
    nothing = Score(num_tokens=0, num_bytes=5, nll=0.0)
    assert nothing.perplexity is None
    assert nothing.bits_per_byte is None


@pytest.mark.parametrize("name", ["short", "short with eod", "long", "long, disjoint", "long, one by one"])
def test_each_log_probability_is_that_of_transformers(scored, scorer, name):
    case = scored.cases[name]
    ids = scored.tokenizer.encode(scored.text[case["begin"] : case["end"]])
    if case["with_eod"]:
        ids = [scored.tokenizer.token_id("<|endoftext|>"), *ids]
    found = [
        scorer.score(ids[cut.start : cut.end + 1], cut.num_targets).log_probs_T
        for cut in cut_windows(len(ids), case["window"], case["stride"])
    ]
    np.testing.assert_allclose(np.concatenate(found), case["log_probs"], rtol=0, atol=ATOL_F32)


def test_what_was_read_before_changes_nothing(scored, scorer):
    ids = scored.tokenizer.encode(scored.text[:700])
    whole = scorer.score(ids, len(ids) - 1)
    for length in (40, 41, len(ids)):
        again = scorer.score(ids[:length], 3)
        np.testing.assert_allclose(
            again.log_probs_T, whole.log_probs_T[length - 4 : length - 1], rtol=0, atol=ATOL_F32
        )
        assert again.is_likeliest_T.tolist() == whole.is_likeliest_T[length - 4 : length - 1].tolist()
    other = scorer.score([*ids[:20], *ids[50:60]], 9)
    assert not np.allclose(other.log_probs_T, whole.log_probs_T[20:29])


def test_a_text_json_lines_and_token_files_give_the_same_and_the_sum_of_transformers(scored, run, tmp_path):
    case = scored.cases["long"]
    text = scored.text[case["begin"] : case["end"]]
    short = scored.text[:400]
    (tmp_path / "text.txt").write_text(text, "utf-8")
    lines = [{"id": "a", "body": text}, {"body": short}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    write_tokens(tmp_path / "data_text_document", [scored.tokenizer.encode(each) for each in (text, short)])
    common = ["--pretrained-model-dir", scored.dir, "--window", 256, "--stride", 128, "--quiet"]
    found = run(*common, "--data", "text.txt", "--json")
    assert found.exit_code == 0, found.output
    total = json.loads(found.stdout)
    nll = -math.fsum(case["log_probs"])
    assert total["num_tokens"] == len(case["log_probs"])
    assert total["nll"] == pytest.approx(nll, rel=1e-5)
    assert total["perplexity"] == pytest.approx(math.exp(nll / len(case["log_probs"])), rel=1e-4)
    assert total["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(text.encode()), rel=1e-5)

    found = run(*common, "--data", "two.jsonl", "--json-key", "body", "--output", "scores.jsonl")
    assert found.exit_code == 0, found.output
    first, second, both = map(json.loads, (tmp_path / "scores.jsonl").read_text("utf-8").splitlines())
    assert (first["document"], first["id"], first["nll"]) == (0, "a", total["nll"])
    expected = -math.fsum(scored.cases["short"]["log_probs"])
    assert second["nll"] == pytest.approx(expected, rel=1e-5)
    assert second["where"] == "two.jsonl, line 2"
    assert both["nll"] == pytest.approx(first["nll"] + second["nll"], rel=1e-12)
    assert (both["documents"], both["window"], both["stride"]) == (2, 256, 128)
    assert f"perplexity {both['perplexity']:.4f}" in found.stdout

    found = run(*common, "--data", "data_text_document", "--output", "tokens.jsonl")
    assert found.exit_code == 0, found.output
    assert "no manifest" in found.stderr
    of_tokens = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text("utf-8").splitlines()]
    for one, other in zip(of_tokens, (first, second, both), strict=True):
        assert {key: one[key] for key in ("tokens", "bytes", "nll")} == {
            key: other[key] for key in ("tokens", "bytes", "nll")
        }
    found = run(*common, "--data", "data_text_document.bin", "--limit", 1, "--json")
    assert json.loads(found.stdout)["nll"] == first["nll"]


def test_bad_input_is_one_sentence_before_mindspore_is_imported(scored, tmp_path):
    (tmp_path / "text.txt").write_text("some text", "utf-8")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n', "utf-8")
    (tmp_path / "blank.jsonl").write_text("\n", "utf-8")
    (tmp_path / "mine.jsonl").write_text("mine", "utf-8")
    write_tokens(tmp_path / "large", [[5, 4096]])
    write_tokens(tmp_path / "cut", [[1, 2, 3]])
    (tmp_path / "cut.bin").write_bytes(b"\0\0\0\0")
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom qwen3_infer.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    found = CliRunner().invoke(main, ['score', *line.split('\\t')])\n"
        "    print(found.exit_code, 'mindspore' in sys.modules, found.stderr.splitlines()[-1])\n"
    )
    model, text = ["--pretrained-model-dir", str(scored.dir)], ["--data", "text.txt"]
    cases = [
        (2, "give the text to score as --input FILE", model),
        (2, "give the model's folder", text),
        (1, "does not exist; --input takes a text", [*model, "--data", "nothing.txt"]),
        (1, ". is a folder; --input takes", [*model, "--data", "."]),
        (1, "empty.txt is empty", [*model, "--data", "empty.txt"]),
        (1, "latin.txt: byte 4 (0xe9) is no UTF-8", [*model, "--data", "latin.txt"]),
        (1, "blank.jsonl, line 1 is blank", [*model, "--data", "blank.jsonl"]),
        (
            1,
            "no text at the key 'other'; name another",
            [*model, "--data", "bad.jsonl", "--json-key", "other"],
        ),
        (1, "large.bin holds id 4096, but the model's tokenizer has 4096", [*model, "--data", "large"]),
        (1, "leaves its .bin of 4 bytes", [*model, "--data", "cut.idx"]),
        (2, "--window 300 must be 1 to 256", [*model, *text, "--window", "300"]),
        (2, "--stride 65 must be 1 to 64", [*model, *text, "--window", "64", "--stride", "65"]),
        (1, "mine.jsonl already exists", [*model, *text, "--output", "mine.jsonl"]),
        (2, ". is a folder; --output takes a file", [*model, *text, "--output", "."]),
        (1, "does not exist; --pretrained-model-dir", ["--pretrained-model-dir", "nowhere", *text]),
    ]
    found = subprocess.run(
        [sys.executable, "-c", script], input="\n".join("\t".join(words) for _, _, words in cases),
        cwd=tmp_path, capture_output=True, text=True, check=True, encoding="utf-8",
    )  # fmt: skip
    for (code, sentence, words), line in zip(cases, found.stdout.splitlines(), strict=True):
        assert line.startswith(f"{code} False Error: "), (words, line)
        assert sentence in line, (words, line)
    assert (tmp_path / "mine.jsonl").read_text("utf-8") == "mine"


def test_nothing_to_predict_and_a_bad_line_at_the_end_leave_no_results(scored, run, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": " of"}\n', "utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "some text"}\n{"text": 3}\n', "utf-8")
    common = ["--pretrained-model-dir", scored.dir, "--quiet", "--output", "scores.jsonl", "--data"]
    found = run(*common, "one.jsonl")
    assert found.exit_code == 1
    assert "no document has a second token to predict" in found.stderr
    found = run(*common, "bad.jsonl")
    assert found.exit_code == 1
    assert "bad.jsonl, line 2 has no text at the key 'text'" in found.stderr
    assert not (tmp_path / "scores.jsonl").exists()
    found = run(*common, "one.jsonl", "--begin-with-eod")
    assert found.exit_code == 0, found.output
    assert "(1 token predicted, 3 bytes)" in found.stdout


def write_tokens(prefix, documents):
    """Write Megatron's files by hand: int32, a document a sequence."""
    lengths = np.array([len(ids) for ids in documents], "<i4")
    ends = np.cumsum(lengths, dtype="<i8") * 4
    indices = np.arange(len(documents) + 1, dtype="<i8")
    header = HEADER.pack(MAGIC, 1, 4, len(documents), len(documents) + 1)
    pointers = (ends - lengths * 4).astype("<i8")
    prefix.with_name(prefix.name + ".idx").write_bytes(
        header + lengths.tobytes() + pointers.tobytes() + indices.tobytes()
    )
    prefix.with_name(prefix.name + ".bin").write_bytes(np.concatenate(documents).astype("<i4").tobytes())


@pytest.mark.parametrize("command", ["score", "eval", "generate", "chat"])
def test_examples_in_help_stand_on_lines_of_their_own(command):
    lines = CliRunner().invoke(main, [command, "--help"]).output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == "Example:")
    assert lines[start + 1].startswith(f"    qwen3-infer {command} --pretrained-model-dir Qwen3-0.6B")


def test_a_checkpoint_takes_the_place_of_the_folders_weights(scored, run, tmp_path):
    (tmp_path / "text.txt").write_text(scored.text[:400], "utf-8")
    (tmp_path / "other").mkdir()
    shutil.copytree(scored.dir, tmp_path / "other/model")
    (tmp_path / "other/model/model.safetensors").rename(tmp_path / "other/weights.safetensors")
    common = ["--data", "text.txt", "--quiet", "--json"]
    found = run(
        "--pretrained-model-dir", "other/model", "--load-checkpoint", "other/weights.safetensors", *common
    )
    assert found.exit_code == 0, found.output
    expected = -math.fsum(scored.cases["short"]["log_probs"])
    assert json.loads(found.stdout)["nll"] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "two.yaml").write_text("parallel_config:\n  model_parallel: 2\n", "utf-8")
    found = run("--config", "two.yaml", "--pretrained-model-dir", scored.dir, *common)
    assert found.exit_code != 0
    assert "model_parallel" in found.stderr.splitlines()[-1]

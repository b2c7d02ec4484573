"""How transformers and lm_eval score texts with a tiny random Qwen3, for the tests of `score` and `eval`.

Run in an environment with torch, transformers and lm_eval:
    python tools/parity_score.py packages/qwen3-infer/tests/golden
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from parity_generate import COMMON
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

DATA = Path(__file__).resolve().parent / "demo_data"
CONTEXT = 256
# name: characters of WikiText from, to; window, stride, whether the end-of-document token comes first
CASES = {
    "short": (0, 400, 256, 128, False),
    "short with eod": (0, 400, 256, 128, True),
    "long": (1000, 6000, 256, 128, False),
    "long, disjoint": (1000, 6000, 256, 256, False),
    "long, one by one": (9000, 10200, 64, 1, True),
}
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
"""
TASKS = {
    "local_choices": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "local_rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "local_completion": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", " the"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
""",
}


def main() -> None:
    out = Path(sys.argv[1]) / "scored"
    out.mkdir(parents=True, exist_ok=True)
    model = make_model(out)
    for path in (DATA / "tokenizer").iterdir():
        shutil.copy(path, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = (DATA / "wikitext2_valid.txt").read_text("utf-8")
    write_json(out / "scores.json", [score(model, tokenizer, text, name) for name in CASES])
    tasks = out / "tasks"
    tasks.mkdir(exist_ok=True)
    write_tasks(tasks, model, tokenizer, text)
    write_json(
        out / "harness.json", {"plain": run_harness(out, tasks, False), "chat": run_harness(out, tasks, True)}
    )
    for path in (DATA / "tokenizer").iterdir():  # the tests take it from where it was
        (out / path.name).unlink()
    print("torch", torch.__version__, "transformers", transformers.__version__)


def make_model(out: Path) -> Qwen3ForCausalLM:
    torch.manual_seed(11)
    special = {
        "vocab_size": 4096,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_theta": 10000.0},
    }
    model = Qwen3ForCausalLM(Qwen3Config(**COMMON | special)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            values = torch.randn(weight.shape)
            weight.copy_(1 + 0.1 * values if weight.dim() == 1 else values / weight.shape[-1] ** 0.5)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    return Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def score(model: Qwen3ForCausalLM, tokenizer: object, text: str, name: str) -> dict:
    """Return the log-probability of each token, every window in a forward pass of its own."""
    begin, end, window, stride, with_eod = CASES[name]
    ids = tokenizer(text[begin:end])["input_ids"]
    if with_eod:
        ids = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), *ids]
    found: list[float] = []
    stop = min(window, len(ids) - 1)
    while len(found) < len(ids) - 1:
        inputs = ids[max(stop - window, 0) : stop]
        with torch.no_grad():
            log_probs = model(torch.tensor([inputs])).logits[0].double().log_softmax(-1)
        new = stop - len(found)
        targets = torch.tensor(ids[stop - new + 1 : stop + 1])
        found += log_probs[-new:].gather(1, targets[:, None])[:, 0].tolist()
        stop = min(stop + stride, len(ids) - 1)
    return {
        "name": name, "begin": begin, "end": end, "window": window, "stride": stride, "with_eod": with_eod,
        "log_probs": [float(f"{value:.7g}") for value in found],
    }  # fmt: skip


def write_tasks(tasks: Path, model: Qwen3ForCausalLM, tokenizer: object, text: str) -> None:
    lines = [line.strip() for line in text.splitlines() if len(line) > 400][:12]

    def go_on(prompt: str, new_tokens: int) -> str:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    choices, completions = [], []
    for number, line in enumerate(lines):
        question, liked = "", " and"
        if number != 3:
            # Cut where the likeliest token is one that the tokenizer makes of its own text.
            cuts = ((line[:at], go_on(line[:at], 1)) for at in range(100, 140))
            question, liked = next(cut for cut in cuts if is_one_token(tokenizer, *cut))
        question += " " * (number == 5)
        others = [line[120:150], " of", lines[number - 1][60:90]]
        choices.append({"question": question, "choices": [liked, *others], "answer": 2 if number % 3 else 0})
        prompt = line[: 900 if number == 0 else 100]
        answer = go_on(prompt, 12).split("\n")[0].split(" the")[0] if number % 2 else "another"
        completions.append({"prompt": prompt, "answer": answer})
    rolling = [{"text": line} for line in lines[:4]] + [{"text": text[1000:4000]}]
    rows = {"local_choices": choices, "local_rolling": rolling, "local_completion": completions}
    for name, body in TASKS.items():
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name) + body, "utf-8")
        (tasks / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]), "utf-8")


def is_one_token(tokenizer: object, before: str, text: str) -> bool:
    whole, known = tokenizer(before + text)["input_ids"], tokenizer(before)["input_ids"]
    return whole[:-1] == known


def run_harness(folder: Path, tasks: Path, chat: bool) -> dict:
    """Return lm_eval's results with its transformers backend; files are named relative to the tasks."""
    before, folder = Path.cwd(), folder.resolve()
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        os.chdir(tasks)
        try:
            import lm_eval
            from lm_eval.tasks import TaskManager

            results = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "dtype": "float32"},
                tasks=["local_choices", "local_completion"] if chat else list(TASKS),
                task_manager=TaskManager(include_path=".", include_defaults=False),
                apply_chat_template=chat,
                device="cpu",
                batch_size=1 if chat else 4,
                bootstrap_iters=0,
            )
        finally:
            os.chdir(before)
    return summary(results)


def summary(results: dict) -> dict:
    """Return the metrics of each task and what the model answered to each request."""
    kept = {}
    for task, metrics in results["results"].items():
        numbers = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in name and name != "sample_len"
        }
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        kept[task] = {"metrics": numbers, "answers": [sample["resps"] for sample in samples]}
    return kept


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""The cases of the matrix: which command, with which YAML and layout, as which rank."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from ascend_inputs import ROOT, TOKENIZER, Inputs

from qwen3_model.command.narrow import as_int, as_list, as_section, build

CONFIGS = ROOT / "configs/qwen3"
A2, A3 = "Ascend910B2", "Ascend910_9391"
LOADER, MODEL = "train_dataset.data_loader", "model.model_config"
SMALL = {
    f"{MODEL}.hidden_size": 128, f"{MODEL}.intermediate_size": 256, f"{MODEL}.head_dim": 16,
    f"{MODEL}.vocab_size": 4096, f"{MODEL}.num_hidden_layers": 1, f"{MODEL}.max_position_embeddings": 128,
    f"{MODEL}.offset": 0, "length": 64, "do_eval": False,
}  # fmt: skip
"""Widths that compile in seconds; the numbers of heads are the size's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One dry run."""

    name: str
    yaml: str
    """Name of a file of configs/qwen3, without its ending."""
    rank: int = 0
    ranks: int = 1
    soc: str = A2
    changes: Mapping[str, object] = field(default_factory=dict)
    """Values by dotted keys; `length` stands for all lengths of sequences."""
    program: str = "generate"
    """Command of qwen3-infer, where the YAML is one for prediction."""
    arguments: tuple[str, ...] = ()
    """Arguments of that command."""
    resumes: bool = False
    """Go on from a checkpoint that one process wrote on the CPU."""

    def command(self, inputs: Inputs, folder: Path) -> list[str]:
        """Write the YAML into `folder` and return the command line, with outputs in `folder`, too."""
        values = self._values()
        path = folder / "run.yaml"
        if self.yaml.startswith("predict"):
            path.write_text(yaml.safe_dump(values), encoding="utf-8")
            model = inputs.model(f"model_{self.name}", as_section(self.changes["sizes"]))
            own = {
                "generate": ["--save-file", str(folder / "answers.txt")],
                "score": ["--data", str(inputs.document)],
            }
            return [
                "qwen3-infer", self.program, "--config", str(path), "--pretrained-model-dir", str(model),
                *own[self.program], *self.arguments,
            ]  # fmt: skip
        self._give_inputs(values, inputs, folder)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return ["qwen3-train", "launch", "--config", str(path)]

    def _values(self) -> dict[str, object]:
        values: dict[str, object] = yaml.safe_load(
            (CONFIGS / f"{self.yaml}.yaml").read_text(encoding="utf-8")
        )
        for dotted, value in self.changes.items():
            if dotted == "length":
                _set_length(values, as_int(value))
            elif dotted != "sizes":
                set_key(values, dotted, value)
        return deepcopy(values)

    def _give_inputs(self, values: dict[str, object], inputs: Inputs, folder: Path) -> None:
        values["output_dir"] = str(folder / "out")
        loader, sizes = _section(values, LOADER), _section(values, MODEL)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            sizes.pop(name, None)
        steps = {"type": "TrainCallBack", "stop_step": 1}
        values["callbacks"] = [*as_list(values["callbacks"]), steps]
        values["pretrained_model_dir"] = str(TOKENIZER)
        if loader["type"] == "HFDataLoader":
            values["pretrained_model_dir"] = str(inputs.model(f"model_{self.name}", sizes))
            loader |= {"data_files": str(inputs.conversations), "cache_dir": str(inputs.folder / "cache")}
        else:
            loader["sizes"] = [64, 4, 0]
            given = {"data_path": [str(inputs.tokens)], "eod": inputs.eod, "split": "90, 10, 0"}
            _section(loader, "config").update(given)


def set_key(values: dict[str, object], dotted: str, value: object) -> None:
    """Set the value of a dotted key, making sections on the way."""
    *sections, last = dotted.split(".")
    place: object = values
    for name in sections:
        if isinstance(place, list):
            place = place[int(name)]
        else:
            assert isinstance(place, dict)
            place = place.setdefault(name, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        assert isinstance(place, dict)
        place[last] = value


def _section(values: Mapping[str, object], dotted: str) -> dict[str, object]:
    """Return a section that the YAML has, to be changed."""
    place: object = values
    for name in dotted.split("."):
        place = as_section(place)[name]
    assert isinstance(place, dict)
    return place


def _set_length(values: dict[str, object], length: int) -> None:
    set_key(values, f"{MODEL}.seq_length", length)
    loader = _section(values, LOADER)
    for number in range(len(as_list(loader.get("handler") or ()))):
        set_key(loader, f"handler.{number}.seq_length", length)
    if not loader.get("handler"):
        set_key(loader, "config.seq_length", length)


def layout(
    *, dp: int = 1, cp: int = 1, tp: int = 1, pp: int = 1, sp: bool = False, zero1: bool = False
) -> dict[str, object]:
    """Return the keys of a layout; a pipeline has two micro-batches more than stages, and a layer a stage."""
    keys: dict[str, object] = {
        "use_parallel": dp * cp * tp * pp > 1,
        "parallel_config.data_parallel": dp,
        "parallel_config.context_parallel": cp,
        "parallel_config.model_parallel": tp,
        "parallel_config.pipeline_stage": pp,
        "parallel_config.micro_batch_num": pp + 2 if pp > 1 else 1,
        "parallel_config.use_seq_parallel": sp,
        "parallel.enable_parallel_optimizer": zero1,
    }
    return keys | ({f"{MODEL}.num_hidden_layers": pp} if pp > 1 else {})


FULL = {"recompute_config.recompute": True}
SELECTIVE = {"recompute_config.recompute": False, "recompute_config.select_recompute": True}
NONE = {"recompute_config.recompute": False, "recompute_config.select_recompute": False}
SKIPS = {"use_skip_data_by_global_norm": True, "monitor_config.global_norm_spike_threshold": 3.0}
ACCUMULATES = {"runner_config.gradient_accumulation_steps": 2}
FLOAT32 = {f"{MODEL}.fp32_residual_connection": True}
DOCUMENTS = {f"{LOADER}.config.reset_position_ids": True, f"{LOADER}.config.reset_attention_mask": True}
EVALUATES = {"do_eval": True}
CHUNKED = {f"{MODEL}.vocab_size": 151936, "runner_config.batch_size": 16}
"""More logits than the loss has at once (`qwen3_train.loss.loss_chunks`): 1,024 tokens."""
PRETRAIN, FINETUNE, LORA = (f"{kind}_qwen3_{{}}_4k" for kind in ("pretrain", "finetune", "lora"))
SIZES = ("0.6b", "1.7b", "4b", "8b", "14b", "32b")


def small_cases() -> Iterator[Case]:
    """Yield the cases of tools/test: every kind of graph, at small widths."""

    def case(name: str, kind: str, size: str, *changes: Mapping[str, object], **facts: object) -> Case:
        merged: dict[str, object] = dict(SMALL)
        for change in changes:
            merged |= change
        return build(Case, {"name": name, "yaml": kind.format(size), "changes": merged, **facts})

    yield case(
        "one process, documents apart, evaluation, loss in chunks", PRETRAIN, "0.6b", layout(), NONE,
        DOCUMENTS, EVALUATES, CHUNKED,
    )  # fmt: skip
    yield case(
        "tensor parallel replicas, ZeRO-1, selective recomputation, accumulation, skipped steps", PRETRAIN,
        "4b", layout(dp=2, tp=2, zero1=True), SELECTIVE, ACCUMULATES, SKIPS, rank=3, ranks=4,
    )  # fmt: skip
    yield case(
        "sequence parallel, full recomputation", PRETRAIN, "14b",
        layout(tp=4, sp=True), FULL, rank=3, ranks=4,
    )  # fmt: skip
    yield case(
        "first of two stages, evaluation", PRETRAIN, "8b", layout(pp=2), NONE, EVALUATES, rank=0, ranks=2
    )
    yield case(
        "middle of three stages, sequence parallel, full recomputation, float32 residuals", PRETRAIN, "32b",
        layout(pp=3, tp=2, sp=True), FULL, FLOAT32, rank=2, ranks=6,
    )  # fmt: skip
    yield case(
        "last stage of all layouts, ZeRO-1, selective recomputation, on an A3", PRETRAIN, "32b",
        layout(dp=2, pp=4, tp=2, sp=True, zero1=True), SELECTIVE, rank=15, ranks=16, soc=A3,
    )  # fmt: skip
    yield case(
        "packed conversations, sequence parallel", FINETUNE, "0.6b", layout(tp=2, sp=True), NONE, ranks=2
    )
    yield case(
        "context parallel, tensor and sequence parallel, full recomputation", PRETRAIN, "8b",
        layout(cp=2, tp=2, sp=True), FULL, rank=3, ranks=4,
    )  # fmt: skip
    yield case("packed conversations, context parallel", FINETUNE, "0.6b", layout(cp=2), NONE, ranks=2)
    yield case(
        "adapters, sequence parallel, full recomputation", LORA, "32b",
        layout(tp=2, sp=True), FULL, rank=1, ranks=2,
    )  # fmt: skip
    yield case(
        "resumed under another layout", PRETRAIN, "0.6b",
        layout(tp=2, sp=True), NONE, rank=1, ranks=2, resumes=True,
    )  # fmt: skip
    sizes = {key.removeprefix(f"{MODEL}."): value for key, value in SMALL.items() if key.startswith(MODEL)}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True}
    yield from _generation("small", sizes)


def _generation(name: str, sizes: Mapping[str, object]) -> Iterator[Case]:
    prompts = (
        "--predict-data", "The game was " * 20, "--predict-data", "One",
        "--predict-batch-size", "2", "--max-new-tokens", "3",
    )  # fmt: skip
    for tp, soc in ((1, A2), (2, A2), (1, A3)):
        shares = {"use_parallel": tp > 1, "parallel_config.model_parallel": tp}
        yield Case(
            name=f"prefill and decode of {name}, {tp} ranks, {soc}", yaml="predict_qwen3", rank=tp - 1,
            ranks=tp, soc=soc, changes=shares | {"sizes": sizes}, arguments=prompts,
        )  # fmt: skip
    yield Case(
        name=f"score with {name}, 2 ranks", yaml="predict_qwen3", rank=1, ranks=2, program="score",
        changes={"use_parallel": True, "parallel_config.model_parallel": 2, "sizes": sizes},
    )  # fmt: skip


def all_cases() -> Iterator[Case]:
    """Yield the cases of --all: the small ones, layouts, and every YAML as it is but for its layers."""
    yield from small_cases()
    yield from _layouts()
    for kind in (PRETRAIN, FINETUNE, LORA):
        for size in SIZES:
            yield from _whole(kind.format(size))
    for size in ("0.6b", "32b"):
        values = yaml.safe_load((CONFIGS / f"{PRETRAIN.format(size)}.yaml").read_text(encoding="utf-8"))
        yield from _generation(size, values["model"]["model_config"] | {"num_hidden_layers": 2})


LAYOUTS: tuple[tuple[str, dict[str, int], int], ...] = (
    ("one process", {}, 0),
    ("tp 2", {"tp": 2}, 1),
    ("tp 2, sequence parallel", {"tp": 2, "sp": True}, 1),
    ("dp 2", {"dp": 2}, 1),
    ("dp 2, ZeRO-1", {"dp": 2, "zero1": True}, 1),
    ("dp 2 x tp 2, sequence parallel, ZeRO-1", {"dp": 2, "tp": 2, "sp": True, "zero1": True}, 3),
    ("first of 2 stages", {"pp": 2}, 0),
    ("last of 2 stages", {"pp": 2}, 1),
    ("first of 3 stages, tp 2", {"pp": 3, "tp": 2}, 0),
    ("middle of 3 stages, dp 2", {"pp": 3, "dp": 2}, 3),
    ("last of 3 stages, tp 2, sequence parallel", {"pp": 3, "tp": 2, "sp": True}, 5),
    ("first of 4 stages, dp 2, ZeRO-1", {"pp": 4, "dp": 2, "zero1": True}, 0),
    ("second of 4 stages", {"pp": 4}, 1),
    ("last of 4 stages of all", {"pp": 4, "dp": 2, "tp": 2, "sp": True, "zero1": True}, 15),
)
"""What a rank can be: its words, its layout, and its number."""


def _layouts() -> Iterator[Case]:
    """Yield each kind of run, layout and recomputation at small widths; steps accumulate and are skipped."""
    for kind in (PRETRAIN, FINETUNE, LORA):
        for words, keys, rank in LAYOUTS:
            for how, recompute in (("none", NONE), ("selective", SELECTIVE), ("full", FULL)):
                changes: dict[str, object] = {**SMALL, **build(layout, keys), **recompute, **SKIPS}
                if kind == PRETRAIN:
                    changes |= {**ACCUMULATES, **EVALUATES}
                yield Case(
                    name=f"layouts: {kind.partition('_')[0]}, {words}, recomputation {how}",
                    yaml=kind.format("0.6b" if kind == FINETUNE else "8b"), rank=rank,
                    ranks=keys.get("dp", 1) * keys.get("tp", 1) * keys.get("pp", 1), changes=changes,
                )  # fmt: skip


def _whole(name: str) -> Iterator[Case]:
    """Yield one case for each kind of rank that the YAML's layout has."""
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    parallel = values["parallel_config"]
    tp, pp = parallel["model_parallel"], parallel["pipeline_stage"]
    layers = {f"{MODEL}.num_hidden_layers": max(2, pp), f"{MODEL}.offset": 0}
    kinds = {"first": 0, "middle": 1, "last": pp - 1} if pp > 1 else {"only": 0}
    for kind, stage in kinds.items():
        yield Case(
            name=f"{name}, {kind} stage", yaml=name, rank=stage * tp * parallel["data_parallel"],
            ranks=tp * pp * parallel["data_parallel"], changes=layers,
        )  # fmt: skip

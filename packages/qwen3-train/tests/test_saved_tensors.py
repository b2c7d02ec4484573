"""The planner's lists against the model itself, run operator by operator on a tiny size."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import mindspore.ops.operations.comm_ops as comm_ops
import numpy as np
import pytest
from mindspore import Tensor
from plan_inputs import make_settings

from qwen3_model.config import SIZES
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import KEY_TURNS, MASK, QUERY_TURNS
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Layout
from qwen3_train.parallel.grid import make_grid
from qwen3_train.plan.memory import plan_memory
from qwen3_train.plan.saved_tensors import head_tensors, layer_tensors, shared_tensors
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.step.step import TrainStep
from qwen3_train.update.shared_adam import SharedAdamW

CONFIG = replace(
    SIZES["8B"],
    vocab_size=40,
    hidden_size=24,
    intermediate_size=56,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
)
SETTINGS = make_settings(model=CONFIG, batch_size=3, seq_length=10, is_fused=False, compute_bytes=4)
HERE = Path(__file__).parent
RTOL_PROCESS = 0.1  # allocator and runtime; 0.02 was measured
# No input or output of a kernel: it is made and used within one.
WITHIN_A_KERNEL = {"swiglu.silu"}


class RecordingKernels:
    """The plain kernels, with every tensor kept that a backward pass would read."""

    compute_dtype = ms.float32

    def __init__(self):
        self.inner = PortableKernels()
        self.read, self.plans = {}, []
        softmax = self.inner._softmax
        self.inner._softmax = lambda scores_RS: self.keep(softmax(scores_RS))

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def keep(self, tensor):
        self.read[id(tensor)] = tensor
        return tensor

    def plan(self, *arguments):
        self.plans.append(self.inner.plan(*arguments))
        return self.plans[-1]

    def linear(self, x_MD, weight_OD):
        return self.inner.linear(self.keep(x_MD), weight_OD)

    def rms_norm(self, x_MD, weight_D, eps):
        return self.inner.rms_norm(self.keep(x_MD), weight_D, eps)

    def swiglu(self, gate_MF, up_MF):
        return self.inner.swiglu(self.keep(gate_MF), self.keep(up_MF))

    def attention(self, q_RH, k_RH, v_RH, plan):
        return self.inner.attention(self.keep(q_RH), self.keep(k_RH), self.keep(v_RH), plan)


@pytest.fixture(scope="module")
def recorded():
    ms.set_context(mode=ms.PYNATIVE_MODE)  # another test may have left graph mode, which records nothing
    kernels = RecordingKernels()
    model = Qwen3ForCausalLM(CONFIG, kernels)
    model(Tensor(np.zeros((SETTINGS.batch_size, SETTINGS.seq_length), np.int32)))
    return kernels


def listed(tensors):
    return sorted(tensor.num_bytes for tensor in tensors if tensor.name not in WITHIN_A_KERNEL)


def test_the_list_is_what_the_models_operators_read(recorded):
    read = sorted(tensor.nbytes for tensor in recorded.read.values())
    assert read == listed(layer_tensors(SETTINGS) * CONFIG.num_layers + head_tensors(SETTINGS))


def test_shared_tensors_are_those_of_the_kernels_plan(recorded):
    (plan,) = recorded.plans
    found = {tensor.name: tensor.num_bytes for tensor in shared_tensors(SETTINGS)}
    tables = [table.nbytes for turns in (plan[QUERY_TURNS], plan[KEY_TURNS]) for table in turns]
    assert plan[MASK].nbytes == found.pop("mask")
    assert found.pop("ids") == 4 * SETTINGS.rows
    assert sorted(tables) == sorted(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("num_layers", "vocab_size", "length"), [(2, 8192, 1024), (2, 32768, 256)])
def test_the_total_is_what_a_process_takes_for_a_step(num_layers, vocab_size, length):
    config = replace(SIZES["0.6B"], num_layers=num_layers, vocab_size=vocab_size)
    settings = make_settings(model=config, seq_length=length, is_fused=False, compute_bytes=4)
    command = [sys.executable, str(HERE / "step_memory.py"), str(num_layers), str(vocab_size), str(length)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert plan_memory(settings)[0].total == pytest.approx(taken, rel=RTOL_PROCESS)


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_parameters_and_optimizer_are_what_a_step_holds(num_micro_batches):
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    step = TrainStep(Qwen3ForCausalLM(CONFIG), adam, max_norm=1.0, num_micro_batches=num_micro_batches)
    (memory,) = plan_memory(
        make_settings(model=CONFIG, accumulation=num_micro_batches, is_fused=False, compute_bytes=4)
    )
    held = sum(weight.nbytes for weight in step.weights.values())
    assert held == memory.parameters == max(memory.gradients, memory.gradient_sums)
    assert sum(moment.nbytes for moment in step.moments().values()) == memory.optimizer
    sums = sum(total.nbytes for total in step.passes.sums) if num_micro_batches > 1 else 0
    assert sums == memory.gradient_sums


def test_what_zero1_holds_is_what_the_planner_counts():
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    model = Qwen3ForCausalLM(CONFIG)
    weights = dict(model.parameters_and_names())
    shared = SharedAdamW(weights, adam, SimpleNamespace(size=2, index=1), model.kernels)
    settings = make_settings(model=CONFIG, layout=Layout(dp=2), parallel_optimizer=True)
    (memory,) = plan_memory(settings)
    assert sum(moment.nbytes for moment in (*shared.m, *shared.v)) == memory.optimizer
    own = sum(piece.nbytes for piece, cut in zip(shared.pieces, shared.cut, strict=True) if cut)
    assert own == memory.updated_rows > 0


@pytest.mark.parametrize("device", ["CPU", "Ascend"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("layout", "stages"),
    [
        (Layout(dp=2, tp=2, pp=3), (0, 1, 2)),
        (Layout(tp=2), (0,)),
        (Layout(dp=2), (0,)),
        (Layout(pp=2), (0, 1)),
        (Layout(dp=4, cp=2, tp=2), (0,)),
        (Layout(dp=2, cp=2, tp=2), (0,)),
    ],
)
def test_the_groups_that_a_rank_makes_are_those_of_the_plan(monkeypatch, device, layout, stages, is_tied):
    made = {}

    def create(name, ranks, options=None):
        mib = 200 if options is None else options.hccl_config["hccl_buffer_size"]
        made[name] = 2 * mib * 2**20

    monkeypatch.setattr("qwen3_model.ranks.collectives.create_group", create)
    monkeypatch.setattr(comm_ops, "_get_group", lambda name: name)
    monkeypatch.setattr(comm_ops, "get_group_size", lambda name: 2)
    model = replace(CONFIG, num_layers=3, tie_word_embeddings=is_tied)
    is_fused = device == "Ascend"
    settings = make_settings(model=model, layout=layout, micro_batch_num=3, is_fused=is_fused)
    for stage in stages:
        made.clear()
        make_grid(
            device, model, layout, (), layout.rank(stage=stage, replica=layout.dp - 1, shard=layout.tp - 1)
        )
        (memory,) = plan_memory(settings)[stage : stage + 1]
        # MindSpore's own, of all ranks, comes with `init`.
        assert len(memory.groups) == len(made) + 1
        assert memory.outside == (sum(made.values()) + 2 * 200 * 2**20 if is_fused else 0)

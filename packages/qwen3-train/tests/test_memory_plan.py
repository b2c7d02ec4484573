import math
from dataclasses import replace

import pytest
from plan_inputs import make_settings

from qwen3_model.config import SIZES
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.layout.lora_shapes import Adapters
from qwen3_train.layout.stages import stage_names
from qwen3_train.plan.communication import plan_traffic
from qwen3_train.plan.memory import PARTS, micro_batches_in_flight, optimizer_elements, plan_memory
from qwen3_train.plan.saved_tensors import layer_tensors, shared_tensors

GIB = 2**30


def fullest(settings):
    return max(stage.total for stage in plan_memory(settings))


def test_parameters_gradients_and_moments_of_06b_on_8_devices_are_as_counted_by_hand():
    # Embedding 151936 x 1024 / 8; last norm 1024; in each of 28 layers norms of 2 x 1024 + 2 x 128 and
    # (2 x 2048 x 1024 + 2 x 1024 x 1024 + 3 x 3072 x 1024) / 8.
    elements = 19_447_808 + 28 * (1_966_080 + 2304) + 1024
    assert elements == 74_563_584
    (memory,) = plan_memory(make_settings(layout=Layout(tp=8)))
    assert (memory.parameters, memory.gradients) == (4 * elements, 4 * elements)
    assert (memory.optimizer, memory.gradient_sums) == (8 * elements, 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [Layout(), Layout(tp=8), Layout(tp=2, pp=4), Layout(dp=2, tp=4, pp=2)])
def test_every_rank_holds_exactly_the_slices_of_its_weights(size, layout):
    settings = make_settings(size, layout=layout, micro_batch_num=layout.pp)
    shapes = SIZES[size].weight_shapes()
    for rank in range(layout.num_ranks):
        stage, _, shard = layout.coordinates(rank)
        counted = 0
        for name in stage_names(SIZES[size], layout.pp, (), stage):
            slices = shard_slices(name, shapes[name], tp=layout.tp, shard=shard)
            counted += math.prod(part.stop - part.start for part in slices)
        assert plan_memory(settings)[stage].parameters == 4 * counted


def test_without_splitting_an_untied_model_needs_16_bytes_a_parameter():
    (memory,) = plan_memory(make_settings("8B"))
    assert memory.parameters + memory.gradients + memory.optimizer == 16 * 8_190_735_360


def test_zero1_shares_the_moments_of_weights_whose_rows_or_elements_divide():
    assert optimizer_elements([(8, 3), (7, 3), (7, 4), (4,)], dp=4) == 6 + 21 + 7 + 1
    one, two, four = (
        plan_memory(make_settings("8B", layout=Layout(dp=dp), parallel_optimizer=True))[0].optimizer
        for dp in (1, 2, 4)
    )
    assert (one, two, four) == (8 * 8_190_735_360, one / 2, one / 4)


def test_a_tied_embeddings_gradient_is_a_sum_of_two():
    for size, copies in (("8B", 0), ("0.6B", 2)):
        (memory,) = plan_memory(make_settings(size, layout=Layout(tp=4)))
        assert memory.gradient_work == copies * 4 * (151_936 // 4) * SIZES[size].hidden_size


def test_the_update_returns_the_largest_weight_and_its_moments():
    largest, model = 4 * (151_936 // 4) * SIZES["8B"].hidden_size, replace(SIZES["8B"], num_layers=1)
    for passes, gradients in ((1, 2), (2, 0)):
        settings = make_settings(model=model, layout=Layout(tp=4), accumulation=passes)
        (memory,) = plan_memory(settings)
        assert memory.update_work == 3 * largest
        # Embedding and head, which are as large, come last: their gradients are left, or only sums.
        held = memory.parameters + memory.optimizer + memory.gradient_sums
        shared = sum(tensor.num_bytes for tensor in shared_tensors(settings))
        assert memory.moments["update"] == held + shared + (gradients + 3) * largest


def test_a_deep_models_update_is_fullest_while_all_gradients_are_left():
    settings = make_settings("8B", layout=Layout(tp=8))
    (memory,) = plan_memory(settings)
    held = memory.parameters + memory.optimizer + sum(each.num_bytes for each in shared_tensors(settings))
    beside = memory.moments["update"] - held - memory.gradients
    # The smallest weights are gone, of which the layers' norms are all; the outputs are those of a matrix.
    assert 0 < beside < 3 * 4 * 12_288 * 4096 / 8


def test_replicas_sum_gradients_in_the_place_of_the_sums_over_passes():
    def update(dp, *, shared):
        layout = Layout(dp=dp, tp=8, pp=4)
        settings = make_settings("32B", layout=layout, micro_batch_num=4, parallel_optimizer=shared)
        memory = plan_memory(settings)[1]
        held = memory.parameters + memory.optimizer + memory.gradient_sums + memory.updated_rows
        return memory.moments["update"] - held, memory

    (alone, one), (beside, two) = update(1, shared=False), update(2, shared=False)
    assert (alone, one.total) == (beside, two.total)
    # Of what is shared out a replica has its own rows of the sums apart.
    rows, four = update(4, shared=True)
    assert four.parameters / 4 < rows < four.parameters / 4 + 2**28


def test_accumulation_keeps_the_sums_in_place_of_the_gradients():
    once, twice, often = (plan_memory(make_settings("8B", accumulation=n))[0] for n in (1, 2, 9))
    assert once.gradient_sums == 0
    assert twice.gradient_sums == often.gradient_sums == once.gradients == once.parameters
    assert twice.gradients == 4 * 151_936 * 4096  # the largest


def test_stages_keep_fewer_micro_batches_towards_the_end():
    assert [micro_batches_in_flight(stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [micro_batches_in_flight(stage, 4, 2) for stage in range(4)] == [2, 2, 2, 1]
    settings = make_settings("8B", layout=Layout(pp=4), micro_batch_num=8)
    kept = [stage.activations for stage in plan_memory(settings)]
    # Nine layers each; waiting are first inputs of 4096 x 4096 halves, of 4, 3, 2 and 1 micro-batches.
    stream = 2 * 4096 * 4096
    head = 3 * stream + 4 * 4096  # the last norm's input in float32, the head's in halves
    assert [kept[0] - each for each in kept] == [0, stream, 2 * stream, 3 * stream - head]


def test_zero1_keeps_the_rows_that_a_replica_updates_once_more():
    (without,), (shared,) = (
        plan_memory(make_settings("8B", layout=Layout(dp=4), parallel_optimizer=on)) for on in (False, True)
    )
    assert without.updated_rows == 0
    assert shared.updated_rows == 4 * 8_190_735_360 / 4


def test_a_fused_layer_of_06b_keeps_what_a_hand_count_says():
    # In each of 4096 rows in bfloat16: 2 outputs of norms of 1024; rotated q of 2048 and k of 1024; v of
    # 1024; attention's output of 2048; gate, up, product of 3072.
    halves = 2 * 1024 + 2048 + 1024 + 1024 + 2048 + 3 * 3072
    # In float32 what norms take: 2 streams of 1024, q of 2048, k of 1024; one for each of 2 norms, 16 and 8
    # for the norms of heads; 2 statistics of 8 for 16 heads.
    floats = 2 * 1024 + 2048 + 1024 + 2 + 16 + 8 + 256
    counted = sum(tensor.num_bytes for tensor in layer_tensors(make_settings()))
    assert counted == 4096 * (2 * halves + 4 * floats)


@pytest.mark.parametrize(
    ("layout", "entering"),
    [
        (Layout(), []),
        (Layout(tp=2, sequence_parallel=True), []),
        (Layout(tp=2), ["qkv_proj.input", "gate_up_proj.input"]),
    ],
)
def test_full_recomputation_keeps_the_input_of_each_layer(layout, entering):
    tensors = layer_tensors(make_settings(layout=layout, recompute="full"))
    assert [tensor.name for tensor in tensors if tensor.is_kept("full")] == ["layer.input", *entering]


def test_the_plain_kernels_keep_the_probabilities():
    tensors = layer_tensors(make_settings(is_fused=False, compute_bytes=4))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    assert shapes["attention.probabilities"] == (1, 16, 4096, 4096)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_fused", [True, False])
def test_more_recomputation_never_needs_more(size, is_fused):
    for layout in (Layout(), Layout(tp=8), Layout(tp=2, pp=4)):
        own = {"is_fused": is_fused, "compute_bytes": 2 if is_fused else 4}
        base = make_settings(size, layout=layout, micro_batch_num=layout.pp, **own)
        kinds = [replace(base, recompute=kind) for kind in ("full", "selective", "none")]
        by_kind = [sum(stage.activations for stage in plan_memory(settings)) for settings in kinds]
        assert by_kind[0] <= by_kind[1] < by_kind[2]
        assert (by_kind[0] < by_kind[1]) == is_fused  # a CPU has one kind
        # On Ascend the update of a large model may be fuller than any of its passes.
        totals = [fullest(settings) for settings in kinds]
        assert totals == sorted(totals)


@pytest.mark.parametrize("size", SIZES)
def test_splitting_further_needs_less(size):
    by_tp = [fullest(make_settings(size, layout=Layout(tp=tp))) for tp in (2, 4, 8)]
    assert by_tp == sorted(by_tp, reverse=True)
    plain, split = (make_settings(size, layout=Layout(tp=4, sequence_parallel=on)) for on in (False, True))
    assert fullest(split) < fullest(plain)


@pytest.mark.parametrize("change", [{"seq_length": 8192}, {"batch_size": 2}])
def test_more_tokens_need_more(change):
    assert fullest(make_settings(**change)) > fullest(make_settings())


def test_logits_are_on_the_last_stage_and_split_over_the_vocabulary():
    stages = plan_memory(make_settings("8B", layout=Layout(tp=8, pp=2), micro_batch_num=2))
    # Three float32 of 4096 x 151936 / 8.
    assert [stage.logits for stage in stages] == [0, 4096 * 18992 * 12]


def test_logits_are_those_of_a_chunk_beside_the_gradients_of_head_and_hidden_states():
    stages = plan_memory(make_settings("8B", layout=Layout(tp=4, pp=2), micro_batch_num=2))
    gradients = 37984 * 4096 * 4 + 4096 * 4096 * 2
    assert [stage.logits for stage in stages] == [0, 2048 * 37984 * 12 + gradients]
    longer = make_settings("32B", layout=Layout(tp=8, pp=4), micro_batch_num=4, seq_length=131_072)
    assert plan_memory(longer)[3].logits < 4 * 2**30


def test_adapters_alone_have_gradients():
    (memory,) = plan_memory(make_settings("8B", adapters=Adapters(16, "linear_qkv")))
    # A of 16 x 4096 each for q, k, v; B of 4096, 1024 and 1024 rows.
    adapters = 36 * (3 * 16 * 4096 + 16 * (4096 + 1024 + 1024))
    assert (memory.gradients, memory.optimizer) == (4 * adapters, 8 * adapters)
    assert memory.parameters == 4 * (8_190_735_360 + adapters)


def test_a_process_on_a_cpu_keeps_all_parts_at_once():
    (memory,) = plan_memory(make_settings(is_fused=False, compute_bytes=4))
    assert memory.total == sum(getattr(memory, part) for part in PARTS)
    assert memory.outside == 0


def test_a_device_is_as_full_as_its_fullest_moment():
    (memory,) = plan_memory(make_settings("8B", layout=Layout(tp=8)))
    held = memory.parameters + memory.optimizer
    assert memory.moments["loss"] == held + memory.weight_copies + memory.activations + memory.logits
    assert memory.total == memory.moments[memory.fullest] == max(memory.moments.values())
    # Without activations to speak of, the gradients decide.
    (short,) = plan_memory(make_settings("8B", layout=Layout(tp=8), seq_length=128))
    assert short.fullest != "loss"


def test_passes_keep_sums_beside_their_gradients():
    once, often = (plan_memory(make_settings("8B", accumulation=n))[0] for n in (1, 8))
    assert often.moments["loss"] - once.moments["loss"] == often.gradient_sums
    moment = "first layer's gradient"
    embedding = 4 * 151_936 * 4096
    # Of all gradients but the embedding's one is left, the head's, which is as large.
    assert often.moments[moment] - once.moments[moment] == 2 * embedding
    # 16 bytes a parameter, the embedding's own gradient, ids, turns and mask.
    shared = sum(tensor.num_bytes for tensor in shared_tensors(make_settings("8B")))
    assert often.moments["embedding's gradient"] == 16 * 8_190_735_360 + embedding + shared


@pytest.mark.parametrize("is_fused", [True, False])
def test_documents_apart_need_masks_on_a_cpu_alone(is_fused):
    base = {"is_fused": is_fused, "compute_bytes": 2 if is_fused else 4, "seq_length": 8192}
    apart, joined = (
        plan_memory(make_settings("0.6B", separate_documents=on, **base))[0].activations
        for on in (True, False)
    )
    # Ascend's operator takes the documents' ends; a CPU has a mask of float32 for each of 16 heads.
    wanted = 0 if is_fused else 15 * 4 * 8192**2
    assert apart - joined == wanted


def test_the_groups_of_a_rank_are_counted_one_by_one():
    settings = make_settings("0.6B", layout=Layout(dp=2, tp=2, pp=3), micro_batch_num=3)
    first, middle, last = plan_memory(settings)
    common = ["all", "tensor parallel", "replicas"]
    assert [*first.groups] == [*common, "stage after", "tied embedding"]
    assert [*middle.groups] == [*common, "stage before", "stage after"]
    assert [*last.groups] == [*common, "stage before", "tied embedding"]
    # Two stages exchange through small buffers, the others through two of 200 MiB.
    assert first.outside == middle.outside == (3 * 400 + 2 * 64) * 2**20
    assert plan_memory(make_settings())[0].groups == ()
    # Of the total nothing: it is memory that MindSpore does not give out.
    assert first.total == max(first.moments.values())


def test_a_group_of_all_ranks_is_mindspores_own():
    for layout in (Layout(tp=8), Layout(dp=8)):
        (memory,) = plan_memory(make_settings("0.6B", layout=layout))
        assert [*memory.groups] == ["all"]
        assert memory.outside == 400 * 2**20


def test_float32_residuals_are_what_layers_keep_and_stages_exchange():
    stream = 4096 * 4096
    halves, floats = (
        make_settings("8B", layout=Layout(pp=4), micro_batch_num=8, recompute="full", residual_bytes=item)
        for item in (2, 4)
    )
    kept = [[stage.activations for stage in plan_memory(settings)] for settings in (halves, floats)]
    # Inputs of nine layers of each micro-batch in flight; of the last stage the one that waits, too.
    assert [b - a for a, b in zip(*kept, strict=True)] == [2 * stream * n for n in (36, 27, 18, 10)]
    sent = [
        [item.payload_bytes for item in plan_traffic(settings, 1) if item.kind == "pp"]
        for settings in (halves, floats)
    ]
    assert sent == [[2 * stream] * 2, [4 * stream] * 2]

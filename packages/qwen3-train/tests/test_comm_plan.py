import math

from plan_inputs import SIZES, make_settings

from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.lora_shapes import Adapters
from qwen3_train.plan.communication import plan_traffic


def traffic(size, stage=0, **changes):
    items = plan_traffic(make_settings(size, **changes), stage)
    return {(item.kind, item.purpose): item for item in items}


def test_how_often_is_a_number_that_prints_as_one():
    layouts = [Layout(dp=2, tp=2, pp=2), Layout(dp=3, tp=2), Layout(dp=2)]
    for layout in layouts:
        for zero1 in (False, True):
            found = traffic("0.6B", layout=layout, parallel_optimizer=zero1)
            assert {type(item.calls) for item in found.values()} == {int}


def test_one_device_sends_nothing():
    assert traffic("0.6B") == {}


def test_tensor_parallel_sums_of_06b_are_as_counted_by_hand():
    found = traffic("0.6B", layout=Layout(tp=8))[("tp", "activations")]
    # 4 in each of 28 layers, one after the embedding, one before the head; 4096 x 1024 in bfloat16; 8 ranks.
    assert (found.calls, found.payload_bytes) == (114, 8_388_608)
    assert found.sent_bytes == 1_673_527_296


def test_sequence_parallel_sends_the_same_in_other_pieces():
    found = [traffic("8B", layout=Layout(tp=4, sequence_parallel=on)) for on in (False, True)]
    plain, split = (item["tp", "activations"] for item in found)
    assert plain.sent_bytes == split.sent_bytes
    assert split.operation == "reduce-scatter + all-gather"


def test_full_recomputation_repeats_the_forward_sums():
    found = [traffic("8B", layout=Layout(tp=4), recompute=kind) for kind in ("none", "full")]
    once, again = (item["tp", "activations"] for item in found)
    assert again.calls - once.calls == 2 * 36


def test_replicas_add_up_one_gradient_whatever_the_number_of_passes():
    for passes in (1, 8):
        found = traffic("8B", layout=Layout(dp=2), accumulation=passes)
        assert list(found) == [("dp", "gradients")]
        assert found[("dp", "gradients")].sent_bytes == 4 * 8_190_735_360


def test_zero1_scatters_gradients_and_gathers_the_updated_weights():
    found = traffic("8B", layout=Layout(dp=2), parallel_optimizer=True)
    assert set(found) == {("dp", "gradients"), ("dp", "updated weights")}
    assert {item.sent_bytes for item in found.values()} == {2 * 8_190_735_360}
    # 151936 rows of the vocabulary over 8 shards do not divide by 32, but their elements do.
    uneven = traffic("8B", layout=Layout(dp=32, tp=8), parallel_optimizer=True)
    assert ("dp", "gradients that do not divide") not in uneven
    # Three replicas share out nothing of norms and little else.
    three = traffic("8B", layout=Layout(dp=3), parallel_optimizer=True)
    rest = three["dp", "gradients that do not divide"]
    undivided = [shape for shape in SIZES["8B"].weight_shapes().values() if math.prod(shape) % 3]
    assert (rest.operation, rest.payload_bytes) == ("all-reduce", 4 * sum(map(math.prod, undivided)))


def test_a_stage_sends_each_micro_batch_to_its_neighbours():
    settings = {"layout": Layout(pp=3), "micro_batch_num": 5, "accumulation": 2}
    sent = [
        {purpose.split()[0]: item.calls for (kind, purpose), item in traffic("8B", stage, **settings).items()}
        for stage in range(3)
    ]
    assert sent == [{"activations": 10}, {"activations": 10, "gradients": 10}, {"gradients": 10}]


def test_the_ends_of_a_pipeline_share_the_gradient_of_a_tied_embedding():
    settings = {"layout": Layout(pp=4), "micro_batch_num": 4}
    tied = [("tied", "gradient of the tied embedding") in traffic("0.6B", at, **settings) for at in range(4)]
    assert tied == [True, False, False, True]
    assert all(kind != "tied" for kind, _ in traffic("8B", **settings))


def test_adapters_send_their_uncut_halves_and_a_tied_embeddings_once_a_step():
    layout = Layout(tp=4, pp=2)
    found = traffic("0.6B", layout=layout, adapters=Adapters(8, "q_proj|o_proj|embed_tokens"))
    halves = found["tp", "gradients of uncut adapter halves"]
    # A of q_proj (8, 1024), B of o_proj (1024, 8), B of the embedding (1024, 8); 14 layers in the stage.
    assert (halves.calls, halves.payload_bytes) == (1, 4 * 8 * 1024 * (14 * 2 + 1))
    tied = found["tied", "gradient of the tied embedding"]
    assert (tied.calls, tied.payload_bytes) == (1, 4 * 8 * (151936 // 4 + 1024))
    assert ("tied", "gradient of the tied embedding") not in traffic(
        "0.6B", layout=layout, adapters=Adapters(8, "q_proj")
    )
    assert ("tp", "gradients of norms") not in found

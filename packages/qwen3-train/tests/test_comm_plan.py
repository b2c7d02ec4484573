from qwen3_model.config import SIZES
from qwen3_model.layout import Layout
from qwen3_train.comm_plan import plan_traffic
from qwen3_train.plan_settings import PlanSettings


def traffic(size, stage=0, **changes):
    values = {
        "model": SIZES[size], "layout": Layout(), "offset": (), "micro_batch": 1, "micro_batch_num": 1, "accumulation": 1,
        "seq_length": 4096, "epochs": 1, "num_samples": 8000, "recompute": "none", "parallel_optimizer": False,
        "is_fused": True, "compute_bytes": 2, "adapters": None,
    }  # fmt: skip
    return {(item.kind, item.purpose): item for item in plan_traffic(PlanSettings(**(values | changes)),
    stage)}


def test_one_device_sends_nothing():
    assert traffic("0.6B") == {}


def test_tensor_parallel_sums_of_06b_are_as_counted_by_hand():
    found = traffic("0.6B", layout=Layout(tp=8))[("tp", "activations")]
    # 4 in each of 28 layers, one after the embedding, one before the head; 4096 x 1024 in bfloat16; ring of
    8. assert (found.calls, found.payload_bytes) == (114, 8_388_608)
    assert found.sent_bytes == 1_673_527_296


def test_sequence_parallel_sends_the_same_in_other_pieces():
    plain, split = (traffic("8B", layout=Layout(tp=4, sequence_parallel=on))[("tp", "activations")] for on in (0, 1))
    assert plain.sent_bytes == split.sent_bytes
    assert split.operation == "reduce-scatter + all-gather"


def test_full_recomputation_repeats_the_forward_sums():
    once, again = (traffic("8B", layout=Layout(tp=4), recompute=kind)[("tp", "activations")] for kind in ("none", "full"))
    assert again.calls - once.calls == 2 * 36


def test_replicas_add_up_one_gradient_whatever_the_number_of_passes():
    for passes in (1, 8):
        found = traffic("8B", layout=Layout(dp=2), accumulation=passes)
        assert list(found) == [("dp", "gradients")]
        assert found[("dp", "gradients")].sent_bytes == 4 * 8_190_735_360


def test_zero1_gathers_the_updated_weights():
    found = traffic("8B", layout=Layout(dp=2), parallel_optimizer=True)[("dp", "updated weights")]
    assert found.sent_bytes == 2 * 8_190_735_360


def test_a_stage_sends_each_micro_batch_to_its_neighbours():
    sent = [
        {purpose.split()[0]: item.calls for (kind, purpose), item in found.items() if kind == "pp"}
        for found in (traffic("8B", stage, layout=Layout(pp=3), micro_batch_num=5, accumulation=2) for stage in range(3))
    ]
    assert sent == [{"activations": 10}, {"activations": 10, "gradients": 10}, {"gradients": 10}]


def test_the_ends_of_a_pipeline_share_the_gradient_of_a_tied_embedding():
    kinds = [{kind for kind, _ in traffic("0.6B", stage, layout=Layout(pp=4), micro_batch_num=4)} for stage in range(4)]
    assert ["tied" in found for found in kinds] == [True, False, False, True]
    assert all(kind != "tied" for kind, _ in traffic("8B", layout=Layout(pp=4), micro_batch_num=4))

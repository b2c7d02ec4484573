"""Do the merged tensors have the shapes that config.json says? A wrong strategy shows here first."""

from qwen3_ckpt.rows import LazyTensor
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError
from qwen3_model.fused import fused_shapes

MAX_NAMED = 5


def check_shapes(tensors: dict[str, LazyTensor], config: Qwen3Config) -> None:
    """Compare the weights, under our names or mindformers', with the model's.

    Raises:
        WeightError: Shapes differ; the tensors are named.
    """
    expected = config.weight_shapes() | fused_shapes(config)
    wrong = [
        f"{name} is {tensor.plan.shape}, config.json says {expected[name]}"
        for name, tensor in tensors.items()
        if name in expected and tensor.plan.shape != expected[name]
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise WeightError(
            f"the merged weights do not fit the model: {'; '.join(wrong[:MAX_NAMED])}{more}; "
            "the strategy or the config is of another run"
        )

"""What Ascend's fused operators take by their documentation: more than MindSpore's own front end refuses.

The checks read shapes and types only, so they hold for a graph that is compiled as for a call that is
computed. `install` puts them before MindSpore's operators, where a graph has them as constants: as parts of
it they would take a third of its time to compile.
"""

from types import SimpleNamespace

import mindspore as ms
from mindspore import ops

FLOATS = (ms.float16, ms.bfloat16, ms.float32)
HALVES = (ms.float16, ms.bfloat16)


def require(holds, sentence):
    if not holds:
        raise ValueError(sentence)


def check_rms_norm(x, gamma, epsilon):
    require(x.dtype in FLOATS, "rms_norm: x is a float")
    require(gamma.dtype == x.dtype, "rms_norm: gamma is of the type of x")
    require(gamma.shape == x.shape[-1:], "rms_norm: gamma has the last dimension of x")
    require(0.0 < epsilon < 1.0, "rms_norm: epsilon lies between 0 and 1")


def check_swiglu(x, dim):
    require(x.dtype in FLOATS, "swiglu: a float")
    require(dim == -1, "swiglu: halves of the last dimension")
    require(x.shape[-1] % 2 == 0, "swiglu: an even dimension")


def check_rotary(x, cos, sin, mode):
    require(x.dtype in FLOATS, "rotary: a float")
    require(cos.dtype == x.dtype, "rotary: cos is of the type of x")
    require(sin.dtype == x.dtype, "rotary: sin is of the type of x")
    require(len(x.shape) == 4, "rotary: four dimensions")
    b, s, n, d = x.shape
    require(d % 2 == 0, "rotary: D is even")
    require(d < 896, "rotary: D is below 896")
    require(b < 1000, "rotary: B is below 1000")
    require(n < 1000, "rotary: N is below 1000")
    require(cos.shape == (b, s, 1, d), "rotary: cos is BS1D where x is BSND")
    require(sin.shape == (b, s, 1, d), "rotary: sin is BS1D where x is BSND")
    require(mode == 0, "rotary: halves are turned in mode 0")


def check_heads(query, key, value, num_heads, halves):
    """BSH queries, keys and values; returns D and the number of key heads."""
    require(query.dtype in halves, "attention: queries are of a half type")
    require(key.dtype == query.dtype, "attention: keys are of the queries' type")
    require(value.dtype == query.dtype, "attention: values are of the queries' type")
    require(len(query.shape) == 3, "attention: three dimensions, BSH")
    require(len(key.shape) == 3, "attention: three dimensions, BSH")
    require(key.shape == value.shape, "attention: keys and values are of one shape")
    require(query.shape[0] == key.shape[0], "attention: as many rows of keys as of queries")
    require(query.shape[2] % num_heads == 0, "attention: H is N times D")
    d = query.shape[2] // num_heads
    require(d % 16 == 0, "attention: D is a multiple of 16")
    require(d <= 512, "attention: D is at most 512")
    require(num_heads <= 256, "attention: N is at most 256")
    require(key.shape[2] % d == 0, "attention: keys have heads of D")
    num_kv_heads = key.shape[2] // d
    require(num_heads % num_kv_heads == 0, "attention: key heads divide query heads")
    return num_kv_heads


def check_flash_attention_of_documents(query, key, value, head_num, attn_mask, ends, sparse_mode, halves):
    """TND: tokens of all documents one after the other, `ends` for queries and for keys."""
    require(query.dtype in halves, "flash attention: queries are of a half type")
    require(key.dtype == query.dtype, "flash attention: keys are of the queries' type")
    require(value.dtype == query.dtype, "flash attention: values are of the queries' type")
    require(len(query.shape) == 3, "flash attention: three dimensions, TND")
    require(key.shape == value.shape, "flash attention: keys and values are of one shape")
    require(query.shape[0] == key.shape[0], "flash attention: as many keys as queries here")
    require(query.shape[1] == head_num, "flash attention: N is the number of heads")
    require(query.shape[1] % key.shape[1] == 0, "flash attention: key heads divide query heads")
    require(query.shape[2] == key.shape[2], "flash attention: heads of one width")
    require(sparse_mode == 3, "flash attention: mode 3 for documents")
    require(attn_mask.dtype in (ms.bool_, ms.uint8), "flash attention: the mask is bool or uint8")
    require(attn_mask.shape == (2048, 2048), "flash attention: mode 3 wants a mask of 2048 x 2048")
    require(isinstance(ends[0], tuple), "flash attention: ends of documents are numbers of the host")
    require(len(ends[0]) == len(ends[1]), "flash attention: as many documents of keys as of queries")


def check_flash_attention(query, key, value, head_num, attn_mask, input_layout, sparse_mode, halves):
    require(input_layout == "BSH", "flash attention: BSH here, or TND with ends of documents")
    check_heads(query, key, value, head_num, halves)
    require(attn_mask.dtype in (ms.bool_, ms.uint8), "flash attention: the mask is bool or uint8")
    full = (query.shape[0], 1, query.shape[1], key.shape[1])
    if sparse_mode == 2:
        require(attn_mask.shape == (2048, 2048), "flash attention: mode 2 wants a mask of 2048 x 2048")
        require(query.shape[1] == key.shape[1], "flash attention: mode 2 counts from the first key")
    else:
        require(sparse_mode == 0, "flash attention: sparse_mode is 0 or 2 here")
        require(attn_mask.shape == full, "flash attention: mode 0 wants a mask of (B, 1, S1, S2)")


def check_incre_flash_attention(
    query,
    key,
    value,
    actual_seq_lengths,
    block_table,
    block_size,
    num_heads,
    input_layout,
    num_key_value_heads,
    halves,
):
    require(input_layout == "BSH", "incremental: BSH here")
    require(len(key) == 1, "incremental: a list of one tensor of keys")
    require(len(value) == 1, "incremental: a list of one tensor of values")
    require(query.dtype in halves, "attention: queries are of a half type")
    require(key[0].dtype == query.dtype, "attention: keys are of the queries' type")
    require(value[0].dtype == query.dtype, "attention: values are of the queries' type")
    require(len(query.shape) == 3, "incremental: three dimensions, BSH")
    require(query.shape[1] == 1, "incremental: one query a row")
    require(len(key[0].shape) == 3, "incremental: blocks of keys are (blocks, tokens, H)")
    require(key[0].shape == value[0].shape, "incremental: keys and values are of one shape")
    require(key[0].shape[1] == block_size, "incremental: the size of a block is another")
    require(block_size % 16 == 0, "incremental: a block is a multiple of 16 tokens")
    require(block_size <= 512, "incremental: a block has at most 512 tokens")
    require(query.shape[2] % num_heads == 0, "attention: H is N times D")
    d = query.shape[2] // num_heads
    require(d % 16 == 0, "attention: D is a multiple of 16")
    require(key[0].shape[2] == num_key_value_heads * d, "incremental: the number of key heads is another")
    require(num_heads % num_key_value_heads == 0, "attention: key heads divide query heads")
    require(isinstance(actual_seq_lengths, tuple), "incremental: lengths are integers of the host")
    require(len(actual_seq_lengths) == query.shape[0], "incremental: one length a row")
    require(block_table.dtype == ms.int32, "incremental: the list of blocks is int32")
    require(len(block_table.shape) == 2, "incremental: a list of blocks for each row")
    require(block_table.shape[0] == query.shape[0], "incremental: a list of blocks for each row")


def check_kv_cache_scatter_update(var, indices, updates, axis, halves):
    require(var.dtype in halves, "cache: a half type")
    require(updates.dtype == var.dtype, "cache: new rows are of the type of the cache")
    require(indices.dtype == ms.int32, "cache: places are int32")
    require(len(indices.shape) == 2, "cache: a block and a place in it for each write")
    require(indices.shape[1] == 2, "cache: a block and a place in it for each write")
    require(len(var.shape) == 3, "cache: (blocks, tokens, H) here")
    require(len(updates.shape) == 3, "cache: as many dimensions as the cache")
    require(axis == 1, "cache: tokens are dimension 1")
    require(updates.shape[0] == indices.shape[0], "cache: a place for each write")
    require(updates.shape[0] <= var.shape[0], "cache: no more writes than blocks")
    require(updates.shape[1] <= var.shape[1], "cache: no more tokens than a block has")
    require(updates.shape[2] == var.shape[2], "cache: rows are as wide as the cache's")


@ms.constexpr
def accept(name, shapes, dtypes, others=()):
    """Check a call in a graph: the shapes and types of its tensors, and the other arguments."""
    tensors = [SimpleNamespace(shape=shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    CHECKS[name](*tensors, *others)


@ms.constexpr
def accept_incremental(shapes, dtypes, lists, num_lengths, others):
    """The same for `incre_flash_attention`: lists of keys and values, and a tuple of lengths or None."""
    query, key, value, block_table = (
        SimpleNamespace(shape=shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    lengths = None if num_lengths is None else (0,) * num_lengths
    check_incre_flash_attention(query, [key] * lists[0], [value] * lists[1], lengths, block_table, *others)


CHECKS = {
    "rms_norm": check_rms_norm,
    "swiglu": check_swiglu,
    "rotary_position_embedding": check_rotary,
    "flash_attention_score": lambda query, key, value, attn_mask, head_num, *others: check_flash_attention(
        query, key, value, head_num, attn_mask, *others
    ),
    "kv_cache_scatter_update": check_kv_cache_scatter_update,
}
RMS_NORM, SWIGLU = ops.rms_norm, ops.auto_generate.swiglu
ROTARY, STORE = ops.auto_generate.rotary_position_embedding, ops.auto_generate.kv_cache_scatter_update
FLASH, INCREMENTAL = ops.flash_attention_score, ops.incre_flash_attention


def rms_norm(x, gamma, epsilon=1e-6):
    accept("rms_norm", (x.shape, gamma.shape), (x.dtype, gamma.dtype), (epsilon,))
    return RMS_NORM(x, gamma, epsilon)


def swiglu(x, dim=-1):
    accept("swiglu", (x.shape,), (x.dtype,), (dim,))
    return SWIGLU(x, dim)


def rotary_position_embedding(x, cos, sin, mode=0):
    shapes, dtypes = (x.shape, cos.shape, sin.shape), (x.dtype, cos.dtype, sin.dtype)
    accept("rotary_position_embedding", shapes, dtypes, (mode,))
    return ROTARY(x, cos, sin, mode)


def flash_attention_score(
    query, key, value, head_num, *, attn_mask=None, actual_seq_qlen=None, actual_seq_kvlen=None,
    scalar_value=1.0, input_layout="BSH", sparse_mode=0,
):  # fmt: skip
    if input_layout == "TND":
        ends = (actual_seq_qlen, actual_seq_kvlen)
        check_flash_attention_of_documents(query, key, value, head_num, attn_mask, ends, sparse_mode, HALVES)
        return FLASH(
            query, key, value, head_num, attn_mask=attn_mask, actual_seq_qlen=actual_seq_qlen,
            actual_seq_kvlen=actual_seq_kvlen, scalar_value=scalar_value, input_layout=input_layout,
            sparse_mode=sparse_mode,
        )  # fmt: skip
    shapes = (query.shape, key.shape, value.shape, attn_mask.shape)
    dtypes = (query.dtype, key.dtype, value.dtype, attn_mask.dtype)
    accept("flash_attention_score", shapes, dtypes, (head_num, input_layout, sparse_mode, HALVES))
    return FLASH(
        query, key, value, head_num, attn_mask=attn_mask, scalar_value=scalar_value,
        input_layout=input_layout, sparse_mode=sparse_mode,
    )  # fmt: skip


def incre_flash_attention(
    query, key, value, *, actual_seq_lengths=None, block_table=None, block_size=0, num_heads=1,
    input_layout="BSH", scale_value=1.0, num_key_value_heads=0,
):  # fmt: skip
    shapes = (query.shape, key[0].shape, value[0].shape, block_table.shape)
    dtypes = (query.dtype, key[0].dtype, value[0].dtype, block_table.dtype)
    num_lengths = len(actual_seq_lengths) if isinstance(actual_seq_lengths, tuple) else None
    others = (block_size, num_heads, input_layout, num_key_value_heads, HALVES)
    accept_incremental(shapes, dtypes, (len(key), len(value)), num_lengths, others)
    return INCREMENTAL(
        query, key, value, actual_seq_lengths=actual_seq_lengths, block_table=block_table,
        block_size=block_size, num_heads=num_heads, input_layout=input_layout, scale_value=scale_value,
        num_key_value_heads=num_key_value_heads,
    )  # fmt: skip


def kv_cache_scatter_update(var, indices, updates, axis):
    shapes, dtypes = (var.shape, indices.shape, updates.shape), (var.dtype, indices.dtype, updates.dtype)
    accept("kv_cache_scatter_update", shapes, dtypes, (axis, HALVES))
    return STORE(var, indices, updates, axis)


OPERATORS = {
    "rms_norm": (ops, rms_norm),
    "swiglu": (ops.auto_generate, swiglu),
    "rotary_position_embedding": (ops.auto_generate, rotary_position_embedding),
    "flash_attention_score": (ops, flash_attention_score),
    "incre_flash_attention": (ops, incre_flash_attention),
    "kv_cache_scatter_update": (ops.auto_generate, kv_cache_scatter_update),
}
"""Every fused operator of `ascend_kernels`, where MindSpore has it, and the checked one."""


def install(monkeypatch):
    for name, (where, checked) in OPERATORS.items():
        monkeypatch.setattr(where, name, checked)

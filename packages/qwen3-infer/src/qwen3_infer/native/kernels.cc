// The operations of a decoder layer for a CPU, over weights that stay in bfloat16 or float32.
//
// What one row gets never depends on how many rows there are: every dot product is one chain of multiply-adds in the
// order of k, whichever tile computes it, and rows share nothing else. So a prompt gives the same bits alone, in a
// batch, and cut into pieces of any length.
//
// Each entry has the form that MindSpore's ops.Custom calls: pointers, shapes and types of the inputs and then the
// output; it returns 0, or 1 for arguments that it was not made for.
//
// M rows, K inputs, O outputs, B batch, L length, N query heads, J key/value heads, H head_dim.

#include "choose.h"
#include "model.h"

namespace {

using namespace qwen3;

inline bool is_type(const char* found, const char* wanted) { return std::strcmp(found, wanted) == 0; }

inline int64_t num_elements(int num_dims, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < num_dims; ++i) size *= shape[i];
  return size;
}

// Whether every new token lies in the cache, and with it all tokens before it, from position 0 of its row on.
bool lie_in_cache(const int32_t* slots, const int32_t* positions, int64_t batch, int64_t num_kv_heads, int64_t length,
                  int64_t num_slots) {
  for (int64_t pair = 0; pair < batch * num_kv_heads; ++pair) {
    const int32_t *own = slots + pair * length, *at = positions + pair / num_kv_heads * length;
    for (int64_t l = 0; l < length; ++l) {
      const int64_t start = static_cast<int64_t>(own[l]) - at[l];
      if (at[l] < 0 || start < 0 || own[l] >= num_slots || start != static_cast<int64_t>(own[0]) - at[0]) return false;
    }
  }
  return true;
}

// Whether products with bfloat16 weights go through the tile multiplier, where the processor has one.
std::atomic<bool> uses_tiles{true};

// Calls work with the kind of product for weights of this type; returns 1 where there is none.
template <typename Work>
int with_weight(const char* type, bool rounds_inputs, const Work& work) {
  if (is_type(type, "float32")) {
    if (rounds_inputs) return 1;
    return work(Float32{}), 0;
  }
#if defined(QWEN3_HAS_TILES)
  if (uses_tiles.load(std::memory_order_relaxed) && has_tiles())
    return rounds_inputs ? work(Tiled<1>{}) : work(Tiled<3>{}), 0;
#endif
  if (!rounds_inputs) return work(Bfloat16{}), 0;
#if defined(__AVX512BF16__)
  return work(Rounded{}), 0;
#else
  return 1;
#endif
}

// A vector of float32, or of bfloat16 widened into `wide`.
const float* widened(const void* values, const char* type, int64_t size, std::vector<float>& wide) {
  if (is_type(type, "float32")) return static_cast<const float*>(values);
  wide.resize(size);
  for (int64_t k = 0; k < size; ++k) wide[k] = widen_one(static_cast<const uint16_t*>(values)[k]);
  return wide.data();
}

int multiply_rows(bool rounds_inputs, int num_params, void** params, int* num_dims, int64_t** shapes,
                  const char** types) {
  if (num_params != 3 || num_dims[0] != 2 || num_dims[1] != 2 || shapes[0][1] != shapes[1][1]) return 1;
  return with_weight(types[1], rounds_inputs, [=](auto weight) {
    typedef typename decltype(weight)::Stored Stored;
    linear(weight, static_cast<const float*>(params[0]), static_cast<const Stored*>(params[1]),
           static_cast<float*>(params[2]), shapes[0][0], shapes[0][1], shapes[1][0]);
  });
}

// Fills `of` from queries (B * L * N, H), keys and values (B * L * J, H) if known, the caches (slots, H), slots
// (B * J * L,) and positions (B, L); returns whether they fit together and all new tokens lie in the cache.
bool describe(Attention& of, int64_t query_rows, int64_t key_rows, int64_t width, void** params, int* num_dims,
              int64_t** shapes, const char** types) {
  if (num_dims[3] != 2 || !is_type(types[2], "int32") || !is_type(types[3], "int32")) return false;
  const int64_t batch = shapes[3][0], length = shapes[3][1], tokens = batch * length;
  if (tokens < 1 || query_rows % tokens || key_rows % tokens || key_rows < tokens) return false;
  of.batch = batch, of.length = length, of.width = width;
  of.num_heads = query_rows / tokens, of.num_kv_heads = key_rows / tokens;
  if (of.num_heads % of.num_kv_heads || num_elements(num_dims[2], shapes[2]) != tokens * of.num_kv_heads) return false;
  for (int i = 0; i < 2; ++i)
    if (num_dims[i] != 2 || shapes[i][1] != width || !is_type(types[i], "float32")) return false;
  if (shapes[1][0] != shapes[0][0]) return false;
  of.keys = static_cast<float*>(params[0]), of.values = static_cast<float*>(params[1]);
  const int32_t* const slots = static_cast<const int32_t*>(params[2]);
  of.positions = static_cast<const int32_t*>(params[3]);
  if (!lie_in_cache(slots, of.positions, batch, of.num_kv_heads, length, shapes[0][0])) return false;
  for (int64_t pair = 0; pair < batch * of.num_kv_heads; ++pair)
    of.starts.push_back(static_cast<int64_t>(slots[pair * length]) - of.positions[pair / of.num_kv_heads * length]);
  return true;
}

}  // namespace

extern "C" {

// To be called before the first operation, which else has one thread.
void qwen3_use_threads(int number) { qwen3::Pool::num_threads() = number; }

// Whether products may use the processor's tile multiplier, as they do where it has one; returns whether they then do.
int qwen3_use_tiles(int allowed) {
  uses_tiles.store(allowed != 0);
  return allowed && has_tiles();
}

// The next tokens of some requests, see choose.h. `loop` and `data` are those of numpy.exp for float32, or null.
void qwen3_choose(Row* rows, int64_t num_rows, void* loop, void* data) {
  choose_rows(rows, num_rows, {reinterpret_cast<Loop>(loop), data});
}

// weight (V, D), ids (M,) to (M, D).
int qwen3_embed(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  if (num_params != 3 || num_dims[0] != 2 || num_dims[1] != 1 || !is_type(types[1], "int32")) return 1;
  const int64_t num_entries = shapes[0][0], width = shapes[0][1];
  const int32_t* ids = static_cast<const int32_t*>(params[1]);
  float* y = static_cast<float*>(params[2]);
  const bool is_wide = is_type(types[0], "float32");
  for (int64_t m = 0; m < shapes[1][0]; ++m) {
    if (ids[m] < 0 || ids[m] >= num_entries) return 1;
    embed_row(params[0], !is_wide, ids[m], width, y + m * width);
  }
  return 0;
}

// (M, K) and (O, K) to (M, O).
int qwen3_linear(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  return multiply_rows(false, num_params, params, num_dims, shapes, types);
}

// Whether this processor multiplies bfloat16.
int qwen3_has_bfloat16() { return with_weight("bfloat16", true, [](auto) {}) == 0; }

// (M, K) rounded to bfloat16 and (O, K) in bfloat16 to (M, O).
int qwen3_linear_rounded(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*,
                         void*) {
  return multiply_rows(true, num_params, params, num_dims, shapes, types);
}

// x (M, K), weight (K,), eps (1,) to (M, K): x * weight / sqrt(mean(x^2) + eps).
int qwen3_rms_norm(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  if (num_params != 4 || num_dims[0] != 2 || shapes[0][1] != shapes[1][0]) return 1;
  const float* x = static_cast<const float*>(params[0]);
  std::vector<float> wide;
  const float* weight = widened(params[1], types[1], shapes[1][0], wide);
  const float eps = *static_cast<const float*>(params[2]);
  float* y = static_cast<float*>(params[3]);
  const int64_t num_rows = shapes[0][0], width = shapes[0][1];
  for_each(num_rows, kSmall / width + 1,
           [=](int64_t m) { norm_row(x + m * width, weight, width, eps, y + m * width); });
  return 0;
}

// gate, up (M, F) to silu(gate) * up.
int qwen3_swiglu(int num_params, void** params, int* num_dims, int64_t** shapes, const char**, void*, void*) {
  if (num_params != 3) return 1;
  const int64_t size = num_elements(num_dims[0], shapes[0]);
  if (num_elements(num_dims[1], shapes[1]) != size) return 1;
  const float *gate = static_cast<const float*>(params[0]), *up = static_cast<const float*>(params[1]);
  float* y = static_cast<float*>(params[2]);
  for_each((size + kSmall - 1) / kSmall, 1, [=](int64_t number) {
    const int64_t at = number * kSmall;
    swiglu_row(gate + at, up + at, size - at < kSmall ? size - at : kSmall, y + at);
  });
  return 0;
}

// x (M * heads, H), cos and sin (B, L, H / 2) to x with each pair (i, i + H / 2) turned.
int qwen3_rotate(int num_params, void** params, int* num_dims, int64_t** shapes, const char**, void*, void*) {
  if (num_params != 4 || num_dims[0] != 2 || num_dims[1] != 3) return 1;
  if (num_elements(num_dims[2], shapes[2]) != num_elements(3, shapes[1]) || shapes[0][1] != 2 * shapes[1][2]) return 1;
  if (shapes[1][0] * shapes[1][1] < 1 || shapes[0][0] % (shapes[1][0] * shapes[1][1])) return 1;
  const float *x = static_cast<const float*>(params[0]), *cosines = static_cast<const float*>(params[1]),
              *sines = static_cast<const float*>(params[2]);
  float* y = static_cast<float*>(params[3]);
  const int64_t num_rows = shapes[0][0], half = shapes[1][2], num_heads = num_rows / (shapes[1][0] * shapes[1][1]);
  for_each(num_rows, kSmall / half + 1, [=](int64_t row) {
    const int64_t at = row / num_heads * half;
    rotate_row(x + row * 2 * half, cosines + at, sines + at, half, y + row * 2 * half);
  });
  return 0;
}

// q (B * L * N, H), k and v (B * L * J, H), the caches (slots, H), slots (B * J * L,), positions (B, L) to the
// attention of each query to the slots 0 to its position of its row, (B * L * N, H). Writes k and v into the caches,
// or nothing at all where a slot lies outside.
int qwen3_cached_attention(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*,
                           void*) {
  if (num_params != 8 || shapes[2][0] != shapes[1][0]) return 1;
  const int64_t width = shapes[0][1];
  for (int i = 0; i < 3; ++i)
    if (num_dims[i] != 2 || shapes[i][1] != width) return 1;
  Attention of;
  if (!describe(of, shapes[0][0], shapes[1][0], width, params + 3, num_dims + 3, shapes + 3, types + 3)) return 1;
  store(of, static_cast<const float*>(params[1]), static_cast<const float*>(params[2]));
  attend_all(of, static_cast<const float*>(params[0]), static_cast<float*>(params[7]));
  return 0;
}

// The last hidden states (wanted, hidden) of the last `wanted` of the tokens, of all or of one row's; the keys and values
// of all go into the cache. Returns 1, and writes nothing, for tokens that fit neither the vocabulary nor the cache.
int qwen3_hidden(const Model* model, const Tokens* tokens, int64_t wanted, float* y) {
  if (!fit(*model, *tokens) || wanted < 1 || wanted > tokens->batch * tokens->length) return 1;
  if (tokens->batch > 1 && wanted != tokens->batch * tokens->length) return 1;
  return with_weight(model->is_bfloat16 ? "bfloat16" : "float32", model->is_bfloat16 && model->rounds_inputs,
                     [=](auto weight) { compute_hidden(weight, *model, *tokens, wanted, y); });
}

// The logits (num_rows, vocabulary) of hidden states (num_rows, hidden).
int qwen3_head(const Model* model, const float* hidden, int64_t num_rows, float* y) {
  return with_weight(model->is_bfloat16 ? "bfloat16" : "float32", model->is_bfloat16 && model->rounds_inputs,
                     [=](auto weight) { compute_head(weight, *model, hidden, num_rows, y); });
}

}  // extern "C"

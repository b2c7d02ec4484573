// The operations of a decoder layer for a CPU, over weights that stay in bfloat16 or float32.
//
// What one row gets never depends on how many rows there are: every dot product is one chain of register-wide
// multiply-adds in the order of k, whichever tile computes it, and rows share nothing else. So a prompt gives the same
// bits alone, in a batch, and cut into pieces of any length.
//
// Each entry has the form that MindSpore's ops.Custom calls: pointers, shapes and types of the inputs and then the
// output; it returns 0, or 1 for arguments that it was not made for.
//
// M rows, K inputs, O outputs, B batch, L length, N query heads, J key/value heads, H head_dim.

#include "attention.h"
#include "linear.h"

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

}  // namespace

extern "C" {

// To be called before the first operation, which else has one thread.
void qwen3_use_threads(int number) { qwen3::Pool::num_threads() = number; }

// weight (V, D), ids (M,) to (M, D).
int qwen3_embed(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  if (num_params != 3 || num_dims[0] != 2 || num_dims[1] != 1 || !is_type(types[1], "int32")) return 1;
  const int64_t num_entries = shapes[0][0], width = shapes[0][1];
  const int32_t* ids = static_cast<const int32_t*>(params[1]);
  float* y = static_cast<float*>(params[2]);
  const bool is_wide = is_type(types[0], "float32");
  for (int64_t m = 0; m < shapes[1][0]; ++m) {
    if (ids[m] < 0 || ids[m] >= num_entries) return 1;
    for (int64_t k = 0; k < width; ++k)
      y[m * width + k] = is_wide ? static_cast<const float*>(params[0])[ids[m] * width + k]
                                 : widen_one(static_cast<const uint16_t*>(params[0])[ids[m] * width + k]);
  }
  return 0;
}

// (M, K) and (O, K) to (M, O).
int qwen3_linear(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  if (num_params != 3 || num_dims[0] != 2 || num_dims[1] != 2 || shapes[0][1] != shapes[1][1]) return 1;
  const float* x = static_cast<const float*>(params[0]);
  float* y = static_cast<float*>(params[2]);
  const int64_t num_rows = shapes[0][0], num_inputs = shapes[0][1], num_outputs = shapes[1][0];
  if (is_type(types[1], "float32"))
    linear<Float32>(x, static_cast<const float*>(params[1]), y, num_rows, num_inputs, num_outputs);
  else
    linear<Bfloat16>(x, static_cast<const uint16_t*>(params[1]), y, num_rows, num_inputs, num_outputs);
  return 0;
}

// Whether this processor multiplies bfloat16.
int qwen3_has_bfloat16() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// (M, K) rounded to bfloat16 and (O, K) in bfloat16 to (M, O).
int qwen3_linear_rounded(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*,
                         void*) {
  if (num_params != 3 || num_dims[0] != 2 || num_dims[1] != 2 || shapes[0][1] != shapes[1][1]) return 1;
  if (is_type(types[1], "float32") || !qwen3_has_bfloat16()) return 1;
#if defined(__AVX512BF16__)
  linear<Rounded>(static_cast<const float*>(params[0]), static_cast<const uint16_t*>(params[1]),
                  static_cast<float*>(params[2]), shapes[0][0], shapes[0][1], shapes[1][0]);
#else
  (void)params;
#endif
  return 0;
}

// x (M, K), weight (K,), eps (1,) to (M, K): x * weight / sqrt(mean(x^2) + eps).
int qwen3_rms_norm(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*, void*) {
  if (num_params != 4 || num_dims[0] != 2 || shapes[0][1] != shapes[1][0]) return 1;
  const float* x = static_cast<const float*>(params[0]);
  std::vector<float> widened;
  const float* weight = static_cast<const float*>(params[1]);
  if (!is_type(types[1], "float32")) {
    widened.resize(shapes[1][0]);
    for (int64_t k = 0; k < shapes[1][0]; ++k) widened[k] = widen_one(static_cast<const uint16_t*>(params[1])[k]);
    weight = widened.data();
  }
  const float eps = *static_cast<const float*>(params[2]);
  float* y = static_cast<float*>(params[3]);
  const int64_t num_rows = shapes[0][0], width = shapes[0][1];
  for_each(num_rows, kSmall / width + 1, [=](int64_t m) {
    const float* row = x + m * width;
    const float scale = 1.0f / std::sqrt(dot(row, row, width) / width + eps);
    for (int64_t k = 0; k < width; ++k) y[m * width + k] = row[k] * scale * weight[k];
  });
  return 0;
}

// gate, up (M, F) to silu(gate) * up.
int qwen3_swiglu(int num_params, void** params, int* num_dims, int64_t** shapes, const char**, void*, void*) {
  if (num_params != 3) return 1;
  const int64_t size = num_elements(num_dims[0], shapes[0]);
  if (num_elements(num_dims[1], shapes[1]) != size) return 1;
  const float *gate = static_cast<const float*>(params[0]), *up = static_cast<const float*>(params[1]);
  float* y = static_cast<float*>(params[2]);
  for_each((size + kLanes - 1) / kLanes, kSmall / kLanes, [=](int64_t number) {
    const int64_t at = number * kLanes, count = size - at < kLanes ? size - at : kLanes;
    Floats a = {}, b = {};
    std::memcpy(&a, gate + at, count * sizeof(float));
    std::memcpy(&b, up + at, count * sizeof(float));
    const Floats product = a / (1.0f + exponential(-a)) * b;
    std::memcpy(y + at, &product, count * sizeof(float));
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
    const float *from = x + row * 2 * half, *c = cosines + row / num_heads * half, *s = sines + row / num_heads * half;
    float* to = y + row * 2 * half;
    for (int64_t i = 0; i < half; ++i) {
      to[i] = from[i] * c[i] - from[i + half] * s[i];
      to[i + half] = from[i + half] * c[i] + from[i] * s[i];
    }
  });
  return 0;
}

// q (B * L * N, H), k and v (B * L * J, H), the caches (slots, H), slots (B * J * L,), positions (B, L) to the
// attention of each query to the slots 0 to its position of its row, (B * L * N, H). Writes k and v into the caches,
// or nothing at all where a slot lies outside.
int qwen3_cached_attention(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*,
                           void*) {
  if (num_params != 8 || num_dims[6] != 2 || !is_type(types[5], "int32") || !is_type(types[6], "int32")) return 1;
  const float *q = static_cast<const float*>(params[0]), *k = static_cast<const float*>(params[1]),
              *v = static_cast<const float*>(params[2]);
  float *keys = static_cast<float*>(params[3]), *values = static_cast<float*>(params[4]);
  const int32_t *slots = static_cast<const int32_t*>(params[5]), *positions = static_cast<const int32_t*>(params[6]);
  float* out = static_cast<float*>(params[7]);
  const int64_t width = shapes[0][1], batch = shapes[6][0], length = shapes[6][1], tokens = batch * length;
  if (tokens < 1 || shapes[0][0] % tokens || shapes[1][0] % tokens || shapes[1][0] < tokens) return 1;
  const int64_t num_heads = shapes[0][0] / tokens, num_kv_heads = shapes[1][0] / tokens;
  if (num_heads % num_kv_heads || num_elements(num_dims[5], shapes[5]) != tokens * num_kv_heads) return 1;
  if (shapes[2][0] != shapes[1][0] || shapes[4][0] != shapes[3][0]) return 1;
  for (int i = 1; i < 5; ++i)
    if (num_dims[i] != 2 || shapes[i][1] != width) return 1;
  if (!lie_in_cache(slots, positions, batch, num_kv_heads, length, shapes[3][0])) return 1;
  const int64_t group = num_heads / num_kv_heads;
  const int64_t pairs = batch * num_kv_heads, queries = length * group, stride = round_up(width, kStep);
  for_each(pairs * length, kSmall / width + 1, [=](int64_t number) {
    const int64_t pair = number / length, b = pair / num_kv_heads, j = pair % num_kv_heads, l = number % length;
    const int64_t row = (b * length + l) * num_kv_heads + j;
    std::memcpy(keys + slots[number] * width, k + row * width, width * sizeof(float));
    std::memcpy(values + slots[number] * width, v + row * width, width * sizeof(float));
  });
  const int64_t pieces = (queries + kQueries - 1) / kQueries;
  qwen3::Pool::shared().run(pairs * pieces, [=](int64_t number) {
    const int64_t pair = number / pieces, b = pair / num_kv_heads, j = pair % num_kv_heads;
    const int64_t start = number % pieces * kQueries, end = start + kQueries < queries ? start + kQueries : queries;
    const int64_t base = (slots[pair * length] - positions[b * length]) * width;
    static thread_local std::vector<Line> packed;
    packed.assign(4 * stride / kLanes, Line{});
    float* const rows = packed.data()->lanes;
    for (int64_t first = start; first < end; first += 4) {
      int64_t counts[4];
      float* to[4];
      const int64_t count = end - first < 4 ? end - first : 4;
      for (int64_t m = 0; m < count; ++m) {
        const int64_t l = (first + m) / group, g = (first + m) % group;
        const int64_t row = (b * length + l) * num_heads + j * group + g;
        std::memcpy(rows + m * stride, q + row * width, width * sizeof(float));
        counts[m] = positions[b * length + l] + 1;
        to[m] = out + row * width;
      }
      switch (count) {
        case 4: attend<4>(rows, stride, keys + base, values + base, counts, width, to); break;
        case 3: attend<3>(rows, stride, keys + base, values + base, counts, width, to); break;
        case 2: attend<2>(rows, stride, keys + base, values + base, counts, width, to); break;
        default: attend<1>(rows, stride, keys + base, values + base, counts, width, to); break;
      }
    }
  });
  return 0;
}

}  // extern "C"

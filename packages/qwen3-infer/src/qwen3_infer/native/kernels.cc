// The operations of a decoder layer for a CPU, over weights that stay in bfloat16 or float32.
//
// What one row gets never depends on how many rows there are: every dot product is one chain of sixteen-lane
// multiply-adds in the order of k, whichever tile computes it, and rows share nothing else. So a prompt gives the same
// bits alone, in a batch, and cut into pieces of any length.
//
// Each entry has the form that MindSpore's ops.Custom calls: pointers, shapes and types of the inputs and then the
// output; it returns 0, or 1 for arguments that it was not made for.
//
// M rows, K inputs, O outputs, B batch, L length, N query heads, J key/value heads, H head_dim.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool.h"

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStep = 2 * kLanes;  // elements of a row of weights that one round takes
constexpr int64_t kChunk = 32;         // rows of weights that a thread takes at a time
constexpr int64_t kLittle = 1 << 17;   // multiply-adds below which a second thread does not pay
constexpr int64_t kQueries = 32;       // queries of a head that a thread takes at a time
constexpr int64_t kSmall = 4096;       // elements below which a second thread does not pay

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

// A load that crosses a line of the cache costs two.
struct alignas(64) Line {
  float lanes[kLanes];
};

inline Floats load(const float* at) {
  Floats value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Keeps a value in a register, where the compiler would load it again for each of its uses.
inline void keep(Floats& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#else
  (void)value;
#endif
}

// Adds lane by lane in halves, always in the same order.
inline float sum(Floats value) {
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// e to the power of each lane, to about two units in the last place; inputs beyond +-87 count as +-87.
inline Floats exponential(Floats x) {
  typedef int32_t Ints __attribute__((vector_size(64)));
  const Floats most = Floats{} + 87.0f, least = Floats{} - 87.0f;
  x = x > most ? most : x;
  x = x < least ? least : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to a whole number, which the low bits then hold.
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats value = Floats{} + 1.0f / 5040;
  value = value * r + 1.0f / 720;
  value = value * r + 1.0f / 120;
  value = value * r + 1.0f / 24;
  value = value * r + 1.0f / 6;
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4b400000 + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return value * power;
}

// Calls work(i) for every i below count, `piece` of them at a time on one thread.
template <typename Work>
void for_each(int64_t count, int64_t piece, const Work& work) {
  qwen3::Pool::shared().run((count + piece - 1) / piece, [&](int64_t number) {
    const int64_t end = (number + 1) * piece < count ? (number + 1) * piece : count;
    for (int64_t i = number * piece; i < end; ++i) work(i);
  });
}

// A weight type says how `kStep` of its elements become two vectors, and in which order x must lie to match.
struct Bfloat16 {
  typedef uint16_t Stored;
  static inline void widen(const uint16_t* at, Floats* even, Floats* odd) {
    Words bits;
    std::memcpy(&bits, at, sizeof bits);
    // Two bfloat16 lie in a word; each is the upper half of a float32.
    const Words low = bits << 16, high = bits & 0xffff0000u;
    std::memcpy(even, &low, sizeof low);
    std::memcpy(odd, &high, sizeof high);
  }
  static inline int64_t place(int64_t k) { return k / kStep * kStep + k % 2 * kLanes + k % kStep / 2; }
};

struct Float32 {
  typedef float Stored;
  static inline void widen(const float* at, Floats* first, Floats* second) {
    *first = load(at);
    *second = load(at + kLanes);
  }
  static inline int64_t place(int64_t k) { return k; }
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// y[m][o] for MR rows and NR outputs; x is packed, and its rows are filled up with zeros to whole steps.
template <typename Weight, int MR, int NR>
inline void tile(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t num_inputs, float* y,
                 int64_t y_stride) {
  Floats total[MR][NR] = {};
  const int64_t whole = num_inputs / kStep * kStep;
  for (int64_t k = 0; k < whole; k += kStep) {
    Floats first[NR], second[NR];
    for (int n = 0; n < NR; ++n) {
      // The rows that come next: the processor's own prefetching stops at the end of each row.
      __builtin_prefetch(w + (NR + n) * num_inputs + k);
      Weight::widen(w + n * num_inputs + k, &first[n], &second[n]);
      keep(first[n]);
      keep(second[n]);
    }
    for (int m = 0; m < MR; ++m) {
      Floats a = load(x + m * x_stride + k), b = load(x + m * x_stride + k + kLanes);
      keep(a);
      keep(b);
      for (int n = 0; n < NR; ++n) {
        total[m][n] += first[n] * a;
        total[m][n] += second[n] * b;
      }
    }
  }
  if (whole < num_inputs) {
    for (int n = 0; n < NR; ++n) {
      typename Weight::Stored rest[kStep] = {};
      std::memcpy(rest, w + n * num_inputs + whole, (num_inputs - whole) * sizeof(rest[0]));
      Floats first, second;
      Weight::widen(rest, &first, &second);
      for (int m = 0; m < MR; ++m) {
        total[m][n] += first * load(x + m * x_stride + whole);
        total[m][n] += second * load(x + m * x_stride + whole + kLanes);
      }
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NR; ++n) y[m * y_stride + n] = sum(total[m][n]);
}

// MR rows of x, which stay in the first cache, with `num_outputs` rows of weights, which stay in the second.
template <typename Weight, int MR>
inline void band(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t num_outputs,
                 int64_t num_inputs, float* y, int64_t y_stride) {
  constexpr int NR = 4;
  int64_t o = 0;
  for (; o + NR <= num_outputs; o += NR)
    tile<Weight, MR, NR>(x, x_stride, w + o * num_inputs, num_inputs, y + o, y_stride);
  for (; o < num_outputs; ++o) tile<Weight, MR, 1>(x, x_stride, w + o * num_inputs, num_inputs, y + o, y_stride);
}

template <typename Weight>
void linear(const float* x, const typename Weight::Stored* w, float* y, int64_t num_rows, int64_t num_inputs,
            int64_t num_outputs) {
  const int64_t stride = round_up(num_inputs, kStep);
  static thread_local std::vector<Line> packed;
  packed.assign(num_rows * stride / kLanes, Line{});
  float* const rows = packed.data()->lanes;
  for_each(num_rows, kSmall / num_inputs + 1, [=](int64_t m) {
    for (int64_t k = 0; k < num_inputs; ++k) rows[m * stride + Weight::place(k)] = x[m * num_inputs + k];
  });
  const int64_t step = num_rows * num_inputs * num_outputs < kLittle ? num_outputs : kChunk;
  qwen3::Pool::shared().run((num_outputs + step - 1) / step, [=](int64_t chunk) {
    const int64_t o = chunk * step, count = num_outputs - o < step ? num_outputs - o : step;
    const typename Weight::Stored* part = w + o * num_inputs;
    int64_t m = 0;
    for (; m + 4 <= num_rows; m += 4)
      band<Weight, 4>(rows + m * stride, stride, part, count, num_inputs, y + m * num_outputs + o, num_outputs);
    const float* rest = rows + m * stride;
    float* to = y + m * num_outputs + o;
    switch (num_rows - m) {
      case 3: band<Weight, 3>(rest, stride, part, count, num_inputs, to, num_outputs); break;
      case 2: band<Weight, 2>(rest, stride, part, count, num_inputs, to, num_outputs); break;
      case 1: band<Weight, 1>(rest, stride, part, count, num_inputs, to, num_outputs); break;
      default: break;
    }
  });
}

inline float widen_one(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline bool is_type(const char* found, const char* wanted) { return std::strcmp(found, wanted) == 0; }

float dot(const float* a, const float* b, int64_t size) {
  Floats total = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) total += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < size; ++i) rest += a[i] * b[i];
  return sum(total) + rest;
}

// probabilities (MR, stride) times values (count, width), the values taken in their order.
template <int MR>
void weighted_sum(const float* probabilities, int64_t stride, const float* values, int64_t count, int64_t width,
                  float* const* out) {
  constexpr int NV = 4;  // vectors of a value that one pass takes
  for (int64_t i = 0; i < width; i += NV * kLanes) {
    const int64_t left = width - i < NV * kLanes ? width - i : NV * kLanes;
    Floats total[MR][NV] = {};
    for (int64_t s = 0; s < count; ++s) {
      Floats value[NV] = {};
      if (left == NV * kLanes)
        for (int n = 0; n < NV; ++n) value[n] = load(values + s * width + i + n * kLanes);
      else
        std::memcpy(value, values + s * width + i, left * sizeof(float));
      for (int m = 0; m < MR; ++m)
        for (int n = 0; n < NV; ++n) total[m][n] += value[n] * probabilities[m * stride + s];
    }
    for (int m = 0; m < MR; ++m) std::memcpy(out[m] + i, total[m], left * sizeof(float));
  }
}

// MR queries (MR, stride), each over its own number of keys and values, which do not decrease.
template <int MR>
void attend(const float* queries, int64_t stride, const float* keys, const float* values, const int64_t* counts,
            int64_t width, float* const* out) {
  static thread_local std::vector<Line> scratch;
  const int64_t most = counts[MR - 1], row = round_up(most, kLanes);
  if (static_cast<int64_t>(scratch.size()) < MR * row / kLanes) scratch.resize(MR * row / kLanes);
  float* const scores = scratch.data()->lanes;
  band<Float32, MR>(queries, stride, keys, most, width, scores, row);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (int m = 0; m < MR; ++m) {
    float* const mine = scores + m * row;
    float highest = -INFINITY;
    for (int64_t s = 0; s < counts[m]; ++s) highest = mine[s] > highest ? mine[s] : highest;
    // What a query does not see gets weight zero, which changes no sum.
    for (int64_t s = counts[m]; s < row; ++s) mine[s] = -INFINITY;
    Floats sums = {};
    for (int64_t s = 0; s < row; s += kLanes) {
      const Floats seen = load(mine + s);
      const Floats hidden = Floats{} - INFINITY;
      const Floats weights = seen == hidden ? Floats{} : exponential((seen - highest) * scale);
      sums += weights;
      std::memcpy(mine + s, &weights, sizeof weights);
    }
    const float total = sum(sums);
    for (int64_t s = 0; s < row; ++s) mine[s] /= total;
  }
  weighted_sum<MR>(scores, row, values, most, width, out);
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
  const float *gate = static_cast<const float*>(params[0]), *up = static_cast<const float*>(params[1]);
  float* y = static_cast<float*>(params[2]);
  int64_t size = 1;
  for (int i = 0; i < num_dims[0]; ++i) size *= shapes[0][i];
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
// attention of each query to the slots 0 to its position of its row, (B * L * N, H). Writes k and v into the caches.
int qwen3_cached_attention(int num_params, void** params, int* num_dims, int64_t** shapes, const char** types, void*,
                           void*) {
  if (num_params != 8 || num_dims[6] != 2 || !is_type(types[5], "int32") || !is_type(types[6], "int32")) return 1;
  const float *q = static_cast<const float*>(params[0]), *k = static_cast<const float*>(params[1]),
              *v = static_cast<const float*>(params[2]);
  float *keys = static_cast<float*>(params[3]), *values = static_cast<float*>(params[4]);
  const int32_t *slots = static_cast<const int32_t*>(params[5]), *positions = static_cast<const int32_t*>(params[6]);
  float* out = static_cast<float*>(params[7]);
  const int64_t width = shapes[0][1], batch = shapes[6][0], length = shapes[6][1], tokens = batch * length;
  const int64_t num_heads = shapes[0][0] / tokens, num_kv_heads = shapes[1][0] / tokens;
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

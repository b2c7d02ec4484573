// Attention of a few queries at a time to the keys and values of one row of the cache.

#pragma once

#include "linear.h"

namespace qwen3 {

constexpr int64_t kQueries = 32;  // queries of a head that a thread takes at a time

// probabilities (M, stride) times values (count, width), the values taken in their order.
template <int M>
void weighted_sum(const float* probabilities, int64_t stride, const float* values, int64_t count, int64_t width,
                  float* const* out) {
  constexpr int NV = 4;  // vectors of a value that one pass takes
  for (int64_t i = 0; i < width; i += NV * kLanes) {
    const int64_t left = width - i < NV * kLanes ? width - i : NV * kLanes;
    Floats total[M][NV] = {};
    for (int64_t s = 0; s < count; ++s) {
      Floats value[NV] = {};
      if (left == NV * kLanes)
        for (int n = 0; n < NV; ++n) value[n] = load(values + s * width + i + n * kLanes);
      else
        std::memcpy(value, values + s * width + i, left * sizeof(float));
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) total[m][n] += value[n] * probabilities[m * stride + s];
    }
    for (int m = 0; m < M; ++m) std::memcpy(out[m] + i, total[m], left * sizeof(float));
  }
}

// M queries (M, stride), each over its own number of keys and values, which do not decrease.
template <int M>
void attend(const float* queries, int64_t stride, const float* keys, const float* values, const int64_t* counts,
            int64_t width, float* const* out) {
  static thread_local std::vector<Line> scratch;
  const int64_t most = counts[M - 1], row = round_up(most, kLanes);
  if (static_cast<int64_t>(scratch.size()) < M * row / kLanes) scratch.resize(M * row / kLanes);
  float* const scores = scratch.data()->lanes;
  many_rows<Float32>(queries, stride, keys, M, most, width, scores, row);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (int m = 0; m < M; ++m) {
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
  weighted_sum<M>(scores, row, values, most, width, out);
}

// What attention is told of its queries and of the cache.
struct Attention {
  int64_t batch, length, num_heads, num_kv_heads, width;
  float *keys, *values;            // (slots, width)
  const int32_t* positions;        // (batch, length)
  std::vector<int64_t> starts;     // (batch, num_kv_heads), the slot of position 0
};

// Copies new keys and values (batch, length, num_kv_heads, width) into their slots.
inline void store(const Attention& of, const float* k, const float* v) {
  for_each(of.batch * of.num_kv_heads * of.length, kSmall / of.width + 1, [=, &of](int64_t number) {
    const int64_t pair = number / of.length, b = pair / of.num_kv_heads, j = pair % of.num_kv_heads;
    const int64_t row = (b * of.length + number % of.length) * of.num_kv_heads + j;
    const int64_t slot = of.starts[pair] + of.positions[b * of.length + number % of.length];
    std::memcpy(of.keys + slot * of.width, k + row * of.width, of.width * sizeof(float));
    std::memcpy(of.values + slot * of.width, v + row * of.width, of.width * sizeof(float));
  });
}

// The attention of each query (batch, length, num_heads, width) to the slots 0 to its position of its row.
inline void attend_all(const Attention& of, const float* q, float* out) {
  const int64_t group = of.num_heads / of.num_kv_heads, width = of.width;
  const int64_t pairs = of.batch * of.num_kv_heads, queries = of.length * group, stride = round_up(width, kStep);
  const int64_t pieces = (queries + kQueries - 1) / kQueries;
  Pool::shared().run(pairs * pieces, [=, &of](int64_t number) {
    const int64_t pair = number / pieces, b = pair / of.num_kv_heads, j = pair % of.num_kv_heads;
    const int64_t start = number % pieces * kQueries, end = start + kQueries < queries ? start + kQueries : queries;
    const int64_t base = of.starts[pair] * width;
    static thread_local std::vector<Line> packed;
    packed.assign(4 * stride / kLanes, Line{});
    float* const rows = packed.data()->lanes;
    for (int64_t first = start; first < end; first += 4) {
      int64_t counts[4];
      float* to[4];
      const int64_t count = end - first < 4 ? end - first : 4;
      for (int64_t m = 0; m < count; ++m) {
        const int64_t l = (first + m) / group, g = (first + m) % group;
        const int64_t row = (b * of.length + l) * of.num_heads + j * group + g;
        std::memcpy(rows + m * stride, q + row * width, width * sizeof(float));
        counts[m] = of.positions[b * of.length + l] + 1;
        to[m] = out + row * width;
      }
      const float *keys = of.keys + base, *values = of.values + base;
      switch (count) {
        case 4: attend<4>(rows, stride, keys, values, counts, width, to); break;
        case 3: attend<3>(rows, stride, keys, values, counts, width, to); break;
        case 2: attend<2>(rows, stride, keys, values, counts, width, to); break;
        default: attend<1>(rows, stride, keys, values, counts, width, to); break;
      }
    }
  });
}

}  // namespace qwen3

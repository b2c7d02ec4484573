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

}  // namespace qwen3

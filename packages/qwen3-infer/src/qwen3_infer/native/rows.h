// What a layer does to each row, besides its products. Not inlined: then every caller gets the same bits, whichever
// multiplications the compiler would join with which additions.

#pragma once

#include "lanes.h"

namespace qwen3 {

// x * weight / sqrt(mean(x^2) + eps), float32.
__attribute__((noinline)) inline void norm_row(const float* x, const float* weight, int64_t width, float eps, float* y) {
  const float scale = 1.0f / std::sqrt(dot(x, x, width) / width + eps);
  for (int64_t k = 0; k < width; ++k) y[k] = x[k] * scale * weight[k];
}

// Turns each pair (i, i + half) by its angle; `y` may not be `x`.
__attribute__((noinline)) inline void rotate_row(const float* __restrict x, const float* __restrict cosines,
                                                 const float* __restrict sines, int64_t half, float* __restrict y) {
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cosines[i] - x[i + half] * sines[i];
    y[i + half] = x[i + half] * cosines[i] + x[i] * sines[i];
  }
}

// silu(gate) * up; `y` may be `gate`.
__attribute__((noinline)) inline void swiglu_row(const float* gate, const float* up, int64_t size, float* y) {
  const auto product = [](Floats a, Floats b) { return a / (1.0f + exponential(-a)) * b; };
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) {
    const Floats whole = product(load(gate + at), load(up + at));
    std::memcpy(y + at, &whole, sizeof whole);
  }
  if (at == size) return;
  Floats a = {}, b = {};
  std::memcpy(&a, gate + at, (size - at) * sizeof(float));
  std::memcpy(&b, up + at, (size - at) * sizeof(float));
  const Floats rest = product(a, b);
  std::memcpy(y + at, &rest, (size - at) * sizeof(float));
}

}  // namespace qwen3

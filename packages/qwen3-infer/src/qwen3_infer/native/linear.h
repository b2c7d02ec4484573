// Matrix products with the transpose of a weight matrix that stays as it is stored.
//
// Every dot product is one chain of multiply-adds in the order of k, whichever tile computes it.

#pragma once

#include "lanes.h"

namespace qwen3 {

constexpr int64_t kStep = 2 * kLanes;  // elements of a row of weights that one round takes
constexpr int64_t kChunk = 32;         // rows of weights that a thread takes at a time
constexpr int64_t kLittle = 1 << 17;   // multiply-adds below which a second thread does not pay

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

}  // namespace qwen3

// Matrix products with the transpose of a weight matrix that stays as it is stored.
//
// Every dot product is one chain of multiply-adds in the order of k, whichever tile computes it.

#pragma once

#include "lanes.h"

namespace qwen3 {

constexpr int64_t kStep = 2 * kLanes;  // elements of a row of weights that one round takes
// A tile's sums fill the registers, with a few weights and an x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;    // of 32 registers
constexpr int64_t kFew = 8;  // rows that meet the weights as they come from memory
#else
constexpr int kSums = 8;  // of 16
constexpr int64_t kFew = 2;
#endif
constexpr int kTileRows = 4;
constexpr int64_t kBlock = 1024;       // inputs at a time, so that a few rows of them fit into the first cache

// A weight type says how half a step of its elements becomes a vector, in which order x must lie to match, and how
// many elements of x lie in the room of a float32; further how many rows are packed together (kUnit) and how many rows
// of weights a thread takes at a time (kChunk).
struct Bfloat16 {
  typedef uint16_t Stored;
  static constexpr int kPerFloat = 1, kRows = kTileRows;
  static constexpr int64_t kUnit = 1, kChunk = 48;
  template <int half>
  static inline Floats widen(const uint16_t* at) {
    Words bits;
    std::memcpy(&bits, at, sizeof bits);
    // Two bfloat16 lie in a word; each is the upper half of a float32.
    bits = half ? bits & 0xffff0000u : bits << 16;
    Floats wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  static inline void order(const float* x, float* packed) {
#if defined(__AVX512F__)
    const Floats a = load(x), b = load(x + kLanes);
    const Floats even = QWEN3_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Floats odd = QWEN3_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    std::memcpy(packed, &even, sizeof even);
    std::memcpy(packed + kLanes, &odd, sizeof odd);
#else
    for (int64_t i = 0; i < kLanes; ++i) packed[i] = x[2 * i], packed[kLanes + i] = x[2 * i + 1];
#endif
  }
};

struct Float32 {
  typedef float Stored;
  static constexpr int kPerFloat = 1, kRows = kTileRows;
  static constexpr int64_t kUnit = 1, kChunk = 48;
  template <int half>
  static inline Floats widen(const float* at) {
    return load(at + half * kLanes);
  }
  static inline void order(const float* x, float* packed) { std::memcpy(packed, x, kStep * sizeof(float)); }
};

#if defined(__AVX512BF16__)
// Bfloat16 weights and x rounded to the nearest bfloat16: the processor multiplies them two at a time, exactly, and
// adds to float32.
struct Rounded {
  typedef uint16_t Stored;
  static constexpr int kPerFloat = 2, kRows = 6;
  static constexpr int64_t kUnit = 1, kChunk = 48;
  static inline void order(const float* x, float* packed) {
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + kLanes), _mm512_loadu_ps(x));
    std::memcpy(packed, &both, sizeof both);
  }
};
#endif

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One half of a step: every weight is widened once and meets every row.
template <typename Weight, int half, int M, int N>
inline void multiply(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t w_stride,
                     Floats (&total)[M * N]) {
  // Else the compiler keeps the words of both halves, and has no registers left for the sums.
  asm volatile("" : "+r"(w));
  Floats weights[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    weights[n] = Weight::template widen<half>(w + n * w_stride);
    keep(weights[n]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    Floats a = load(x + m * x_stride + half * kLanes);
    keep(a);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) total[m * N + n] += weights[n] * a;
  }
}

// One step: every weight meets every row.
template <typename Weight, int M, int N>
inline void step(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t w_stride,
                 Floats (&total)[M * N]) {
#if defined(__AVX512BF16__)
  if constexpr (Weight::kPerFloat == 2) {
    __m512bh weights[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) std::memcpy(&weights[n], w + n * w_stride, sizeof weights[n]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      __m512bh a;
      std::memcpy(&a, x + m * x_stride, sizeof a);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        __m512 sums = (__m512)total[m * N + n];
        sums = _mm512_dpbf16_ps(sums, weights[n], a);
        total[m * N + n] = (Floats)sums;
      }
    }
    return;
  }
#endif
  if constexpr (Weight::kPerFloat == 1) {
    multiply<Weight, 0, M, N>(x, x_stride, w, w_stride, total);
    multiply<Weight, 1, M, N>(x, x_stride, w, w_stride, total);
  }
}

// The inputs that a tile takes, of all of a row.
struct Block {
  int64_t begin, size;
  bool is_first, is_last;
};

// y[m][n] for M rows and N outputs; x is packed, and its rows are filled up with zeros to whole steps. Sums of a
// block that is not the last wait in `waiting`. Meanwhile the weights at `next`, of `lines` rows, are fetched.
// Not to be inlined: within a larger function the compiler runs out of registers.
template <typename Weight, int M, int N, int lines>
__attribute__((noinline)) void tile(const float* x, int64_t x_stride, const typename Weight::Stored* w,
                                    int64_t num_inputs, Block block, const typename Weight::Stored* next,
                                    Floats* waiting, float* y, int64_t y_stride) {
  typedef typename Weight::Stored Stored;
  const int64_t whole = block.size / kStep * kStep;
  x += block.begin / Weight::kPerFloat;
  w += block.begin;
  Stored rest[N * kStep];
  if (whole < block.size)
    for (int n = 0; n < N; ++n) {
      std::memset(rest + n * kStep, 0, kStep * sizeof(Stored));
      std::memcpy(rest + n * kStep, w + n * num_inputs + whole, (block.size - whole) * sizeof(Stored));
    }
  Floats total[M * N] = {};
  if (!block.is_first) std::memcpy(total, waiting, sizeof total);
  for (int64_t k = 0; k < whole; k += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < lines; ++i)
      if (k * sizeof(Stored) % 64 == 0) __builtin_prefetch(next + i * num_inputs + k);
    step<Weight, M, N>(x + k / Weight::kPerFloat, x_stride, w + k, num_inputs, total);
  }
  if (whole < block.size) step<Weight, M, N>(x + whole / Weight::kPerFloat, x_stride, rest, kStep, total);
  if (!block.is_last) {
    std::memcpy(waiting, total, sizeof total);
    return;
  }
  float found[(M * N + 7) / 8 * 8];
#pragma GCC unroll 3
  for (int i = 0; i < M * N; i += 8) {
    Floats eight[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) eight[j] = i + j < M * N ? total[i + j < M * N ? i + j : 0] : Floats{};
    sums_of_eight(eight, found + i);
  }
  for (int m = 0; m < M; ++m) std::memcpy(y + m * y_stride, found + m * N, N * sizeof(float));
}

// A tile of any number of rows that the registers take, at most eight.
template <typename Weight, int N, int lines, int M = (kSums / N < 8 ? kSums / N : 8)>
inline void tile_of(int64_t num_rows, const float* x, int64_t x_stride, const typename Weight::Stored* w,
                    int64_t num_inputs, Block block, const typename Weight::Stored* next, Floats* waiting, float* y,
                    int64_t y_stride) {
  if constexpr (M > 0) {
    if (num_rows == M)
      tile<Weight, M, N, lines>(x, x_stride, w, num_inputs, block, next, waiting, y, y_stride);
    else
      tile_of<Weight, N, lines, M - 1>(num_rows, x, x_stride, w, num_inputs, block, next, waiting, y, y_stride);
  }
}

// At most kFew rows meet weights that come from memory: while a tile is computed, the weights of the next are fetched.
template <typename Weight, int N>
void few_rows(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t num_rows,
              int64_t num_outputs, int64_t num_inputs, float* y, int64_t y_stride) {
  static thread_local std::vector<Line> scratch;
  const int64_t tiles = num_outputs / N, done = tiles * N;
  if (static_cast<int64_t>(scratch.size()) < tiles * kSums) scratch.resize(tiles * kSums);
  for (Block block{0, 0, true, false}; !block.is_last; block.begin += block.size, block.is_first = false) {
    block.size = num_inputs - block.begin < kBlock ? num_inputs - block.begin : kBlock;
    block.is_last = block.begin + block.size == num_inputs;
    for (int64_t t = 0; t < tiles; ++t) {
      const typename Weight::Stored* at = w + t * N * num_inputs;
      const typename Weight::Stored* next = t + 1 < tiles || block.is_last ? at + N * num_inputs + block.begin
                                                                           : w + block.begin + block.size;
      Floats* const waiting = reinterpret_cast<Floats*>(&scratch[t * kSums]);
      tile_of<Weight, N, N>(num_rows, x, x_stride, at, num_inputs, block, next, waiting, y + t * N, y_stride);
    }
  }
  if constexpr (N > 1)
    if (done < num_outputs)
      few_rows<Weight, 1>(x, x_stride, w + done * num_inputs, num_rows, num_outputs - done, num_inputs, y + done,
                          y_stride);
}

// A few rows at a time stay in the first cache while all the weights come from the second, where the first rows have
// brought them.
template <typename Weight>
void many_rows(const float* x, int64_t x_stride, const typename Weight::Stored* w, int64_t num_rows,
               int64_t num_outputs, int64_t num_inputs, float* y, int64_t y_stride) {
  constexpr int M = Weight::kRows, N = kSums / M;
  const Block block{0, num_inputs, true, true};
  const int64_t whole = num_outputs / N * N;
  for (int64_t m = 0; m < num_rows; m += M, x += M * x_stride, y += M * y_stride) {
    const int64_t count = num_rows - m < M ? num_rows - m : M;
    for (int64_t o = 0; o < whole; o += N) {
      const typename Weight::Stored* at = w + o * num_inputs;
      if (m == 0 && count == M)
        tile<Weight, M, N, N>(x, x_stride, at, num_inputs, block, at + N * num_inputs, nullptr, y + o, y_stride);
      else
        tile_of<Weight, N, 0>(count, x, x_stride, at, num_inputs, block, nullptr, nullptr, y + o, y_stride);
    }
    for (int64_t o = whole; o < num_outputs; ++o)
      tile_of<Weight, 1, 0>(count, x, x_stride, w + o * num_inputs, num_inputs, block, nullptr, nullptr, y + o,
                            y_stride);
  }
}

// Floats between a packed row and the next.
template <typename Weight>
inline int64_t packed_stride(int64_t num_inputs) {
  // One line more than the rows need, lest all of them fall into the same few places of the first cache.
  return round_up(num_inputs, kStep) / Weight::kPerFloat + kLanes;
}

// Floats of so many packed rows.
template <typename Weight>
inline int64_t packed_size(Weight, int64_t num_rows, int64_t num_inputs) {
  return num_rows * packed_stride<Weight>(num_inputs);
}

// Packs the rows of unit number `unit`, here row m, of `x`.
template <typename Weight>
void pack(Weight, const float* x, int64_t, int64_t num_inputs, int64_t m, float* packed) {
  const int64_t whole = num_inputs / kStep * kStep;
  float* const to = packed + m * packed_stride<Weight>(num_inputs);
  x += m * num_inputs;
  for (int64_t k = 0; k < whole; k += kStep) Weight::order(x + k, to + k / Weight::kPerFloat);
  if (whole < num_inputs) {
    float rest[kStep] = {};
    std::memcpy(rest, x + whole, (num_inputs - whole) * sizeof(float));
    Weight::order(rest, to + whole / Weight::kPerFloat);
  }
}

// Packed x times `num_outputs` rows of weights, on this thread.
template <typename Weight>
void multiply_part(Weight, const float* packed, const typename Weight::Stored* w, int64_t num_rows, int64_t num_outputs,
                   int64_t num_inputs, float* y, int64_t y_stride) {
  const int64_t stride = packed_stride<Weight>(num_inputs);
  if (num_rows <= 4 && num_rows <= kFew)
    few_rows<Weight, 4>(packed, stride, w, num_rows, num_outputs, num_inputs, y, y_stride);
  else if (num_rows <= kFew)
    few_rows<Weight, 3>(packed, stride, w, num_rows, num_outputs, num_inputs, y, y_stride);
  else
    many_rows<Weight>(packed, stride, w, num_rows, num_outputs, num_inputs, y, y_stride);
}

}  // namespace qwen3

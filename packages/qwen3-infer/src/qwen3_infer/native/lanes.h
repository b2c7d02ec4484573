// As many float32 at a time as a register has, in the compiler's own vectors, so that one source serves every
// processor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "pool.h"

namespace qwen3 {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#define QWEN3_REGISTER "+v"
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#define QWEN3_REGISTER "+x"
#else
constexpr int64_t kLanes = 4;
#if defined(__x86_64__)
#define QWEN3_REGISTER "+x"
#elif defined(__aarch64__)
#define QWEN3_REGISTER "+w"
#endif
#endif
constexpr int64_t kSmall = 4096;  // elements below which a second thread does not pay

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

// A load that crosses a line of the cache costs two.
struct alignas(64) Line {
  float lanes[kLanes];  // shorter than the line where a register is
};

inline Floats load(const float* at) {
  Floats value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Keeps a value in a register, where the compiler would load it again for each of its uses, and in its place among
// the others that are kept.
inline void keep(Floats& value) {
#if defined(QWEN3_REGISTER)
  asm volatile("" : QWEN3_REGISTER(value));
#else
  (void)value;
#endif
}

// Sixteen lanes of two vectors in any order: number i is of the first, 16 + i of the second.
#if defined(__clang__)
#define QWEN3_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define QWEN3_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// Adds lane by lane in halves, always in the same order.
inline float sum(Floats value) {
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The sums of eight vectors, the same additions as by `sum`.
inline void sums_of_eight(const Floats* v, float* sums) {
#if defined(__AVX512F__)
  Floats halves[4], quarters[2];
  for (int i = 0; i < 4; ++i)
    halves[i] = QWEN3_SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                QWEN3_SHUFFLE(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 2; ++i)
    quarters[i] =
        QWEN3_SHUFFLE(halves[2 * i], halves[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        QWEN3_SHUFFLE(halves[2 * i], halves[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Floats pairs =
      QWEN3_SHUFFLE(quarters[0], quarters[1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
      QWEN3_SHUFFLE(quarters[0], quarters[1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  const Floats found = QWEN3_SHUFFLE(pairs, pairs, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14) +
                       QWEN3_SHUFFLE(pairs, pairs, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
  std::memcpy(sums, &found, 8 * sizeof(float));
#else
  for (int i = 0; i < 8; ++i) sums[i] = sum(v[i]);
#endif
}

// e to the power of each lane, to about two units in the last place; inputs beyond +-87 count as +-87.
inline Floats exponential(Floats x) {
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

inline float dot(const float* a, const float* b, int64_t size) {
  Floats total = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) total += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < size; ++i) rest += a[i] * b[i];
  return sum(total) + rest;
}

// Returns a bfloat16, which is the upper half of a float32.
inline float widen_one(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Calls work(i) for every i below count, `piece` of them at a time on one thread.
template <typename Work>
void for_each(int64_t count, int64_t piece, const Work& work) {
  qwen3::Pool::shared().run((count + piece - 1) / piece, [&](int64_t number) {
    const int64_t end = (number + 1) * piece < count ? (number + 1) * piece : count;
    for (int64_t i = number * piece; i < end; ++i) work(i);
  });
}

}  // namespace qwen3

// Sixteen float32 at a time, in the compiler's own vectors, so that one source serves every processor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool.h"

namespace qwen3 {

constexpr int64_t kLanes = 16;
constexpr int64_t kSmall = 4096;  // elements below which a second thread does not pay

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

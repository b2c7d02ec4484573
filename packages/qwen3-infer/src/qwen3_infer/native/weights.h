// Weights of tokens: e to the power of (logit - highest) / temperature, in float64.

#pragma once

#include <cfloat>

#include "lanes.h"

namespace qwen3 {

constexpr int64_t kDoubles = kLanes / 2;  // in a register

typedef double Doubles __attribute__((vector_size(kDoubles * 8)));
typedef int64_t Longs __attribute__((vector_size(kDoubles * 8)));

// As many float32 as float64.
inline Doubles widen(const float* values) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(values));
#else
  typedef float Halves __attribute__((vector_size(kDoubles * 4)));
  Halves narrow;
  std::memcpy(&narrow, values, sizeof narrow);
  return __builtin_convertvector(narrow, Doubles);
#endif
}

inline Doubles at_least(Doubles value, double least) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_max_pd((__m512d)value, _mm512_set1_pd(least));
#else
  return value > least ? value : Doubles{} + least;
#endif
}

// 2 to the power of each lane, none above 0, to 7e-12 of it, and exactly 1 for 0; inputs below -1000 count as -1000.
inline Doubles power_of_two(Doubles y) {
  y = at_least(y, -1000.0);
  // y = n + f with |f| <= 1/2. Adding 1.5 * 2^52 rounds to a whole number, which the low bits then hold.
  const Doubles shifted = y + 6755399441055744.0;
  const Doubles f = y - (shifted - 6755399441055744.0);
  // The series of e^(f ln 2) up to f^9, whose terms are ln(2)^i / i!, in pairs: no step waits for all before it.
  const Doubles f2 = f * f, f4 = f2 * f2;
  const Doubles low = (f * 6.931471805599453e-1 + 1.0) + f2 * (f * 5.550410866482158e-2 + 2.402265069591007e-1);
  const Doubles middle =
      (f * 1.3333558146428443e-3 + 9.618129107628477e-3) + f2 * (f * 1.525273380405984e-5 + 1.5403530393381608e-4);
  const Doubles high = f * 1.0178086009239699e-7 + 1.3215486790144307e-6;
  const Doubles value = low + f4 * (middle + f4 * high);
  // n goes to the exponent.
  Longs bits, exponent;
  std::memcpy(&bits, &value, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 52;
  Doubles power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// Makes weights of logits: e to the power of (logit - highest) / temperature.
struct Weigher {
  Weigher() = default;
  Weigher(double most, double temperature) : highest(most), factor(1.4426950408889634 / temperature) {}

  // Of kDoubles logits.
  Doubles operator()(const float* logits) const { return power_of_two((widen(logits) - highest) * factor); }

  double one(float logit) const {
    return power_of_two((Doubles{} + static_cast<double>(logit) - highest) * factor)[0];
  }

  // Of `count` logits.
  void all(const float* logits, int64_t count, double* weights) const {
    int64_t at = 0;
    for (; at + kDoubles <= count; at += kDoubles) {
      const Doubles each = (*this)(logits + at);
      std::memcpy(weights + at, &each, sizeof each);
    }
    for (; at < count; ++at) weights[at] = one(logits[at]);
  }

  // The sum of the weights of `count` logits.
  double total(const float* logits, int64_t count) const {
    constexpr int64_t kFour = 4 * kDoubles;
    Doubles sums[4] = {};
    int64_t at = 0;
    for (; at + kFour <= count; at += kFour)
      for (int64_t v = 0; v < 4; ++v) sums[v] += (*this)(logits + at + v * kDoubles);
    const Doubles sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0;
    for (int64_t k = 0; k < kDoubles; ++k) total += sum[k];
    for (; at < count; ++at) total += one(logits[at]);
    return total;
  }

  double highest = 0, factor = 0;
};

// A bit for each lane that is not 0.
inline uint32_t bits_of(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
#else
  uint32_t bits = 0;
  for (int64_t k = 0; k < kLanes; ++k) bits |= static_cast<uint32_t>(lanes[k] != 0) << k;
  return bits;
#endif
}

}  // namespace qwen3

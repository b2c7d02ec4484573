// What sampling asks of all logits.

#pragma once

#include "lanes.h"

namespace qwen3 {

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

// e to the power of (logit - highest) / temperature.
template <bool divides>
struct Weights {
  float highest, temperature;

  Floats operator()(Floats logits) const {
    return exponential(divides ? (logits - highest) / temperature : logits - highest);
  }
};

// The sum of `weights` of `count` logits; each summand is good to some units in the last place of a float32.
template <typename Kind>
double sum_of(Kind weights, const float* logits, int64_t count) {
  constexpr int64_t kFour = 4 * kLanes;
  Doubles totals = {};
  int64_t at = 0;
  for (; at + kFour <= count; at += kFour) {
    const Floats a = weights(load(logits + at)), b = weights(load(logits + at + kLanes));
    const Floats c = weights(load(logits + at + 2 * kLanes)), d = weights(load(logits + at + 3 * kLanes));
    totals += __builtin_convertvector((a + b) + (c + d), Doubles);
  }
  double total = 0;
  for (; at < count; ++at) total += weights(Floats{} + logits[at])[0];
  for (int64_t k = 0; k < kLanes; ++k) total += totals[k];
  return total;
}

// The sums of exp((logit - highest) / temperature) over `block` logits at a time.
inline void block_sums(const float* logits, int64_t size, float highest, float temperature, int64_t block, double* sums) {
  // A temperature of 1 saves the divisions, which take as long as all else.
  for_each((size + block - 1) / block, kSmall / block + 1, [=](int64_t i) {
    const float* const from = logits + i * block;
    const int64_t count = size - i * block < block ? size - i * block : block;
    sums[i] = temperature == 1.0f ? sum_of(Weights<false>{highest, temperature}, from, count)
                                  : sum_of(Weights<true>{highest, temperature}, from, count);
  });
}

constexpr int64_t kGroups = 16;  // in a block; logits that lie so far apart are of one

// The largest of each group of logits, of which none may be NaN: of a block of them, number `i` is that of the logits i,
// i + 16, i + 32 and so on.
inline void group_maxima(const float* logits, int64_t size, int64_t block, float* maxima) {
  for_each((size + block - 1) / block, kSmall / block + 1, [=](int64_t i) {
    const float* const from = logits + i * block;
    const int64_t count = size - i * block < block ? size - i * block : block;
    constexpr int64_t kVectors = kGroups / kLanes;
    Floats most[kVectors];
    for (Floats& each : most) each = Floats{} - INFINITY;
    int64_t at = 0;
    for (; at + kGroups <= count; at += kGroups)
      for (int64_t v = 0; v < kVectors; ++v) {
        const Floats each = load(from + at + v * kLanes);
        most[v] = each > most[v] ? each : most[v];
      }
    float* const to = maxima + i * kGroups;
    std::memcpy(to, most, sizeof most);
    for (int64_t k = 0; at + k < count; ++k) to[k] = from[at + k] > to[k] ? from[at + k] : to[k];
  });
}

// Writes the numbers of the logits that reach `floor`, in their order, into `ids`, which has room for one more than there
// are logits; returns how many reach it.
inline int64_t above(const float* logits, int64_t size, float floor, int64_t* ids) {
  int64_t found = 0, at = 0;
  for (; at + 4 * kLanes <= size; at += 4 * kLanes) {
    // Most often none does.
    Floats most = load(logits + at);
    for (int64_t v = 1; v < 4; ++v) {
      const Floats each = load(logits + at + v * kLanes);
      most = each > most ? each : most;
    }
    const Ints reached = most >= floor;
    int32_t any = 0;
    for (int64_t k = 0; k < kLanes; ++k) any |= reached[k];
    if (!any) continue;
    for (int64_t k = 0; k < 4 * kLanes; ++k) {
      ids[found] = at + k;
      found += logits[at + k] >= floor;
    }
  }
  for (; at < size; ++at) {
    ids[found] = at;
    found += logits[at] >= floor;
  }
  return found;
}

}  // namespace qwen3

// What sampling asks of all logits.

#pragma once

#include "lanes.h"

namespace qwen3 {

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

// The sums of exp((logit - highest) / temperature) over `block` logits at a time, in double precision; each summand is
// good to two units in the last place of a float32.
inline void block_sums(const float* logits, int64_t size, float highest, float temperature, int64_t block, double* sums) {
  const int64_t number = (size + block - 1) / block;
  for_each(number, kSmall / block + 1, [=](int64_t i) {
    const float* from = logits + i * block;
    const int64_t count = size - i * block < block ? size - i * block : block;
    Doubles totals = {};
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes)
      totals += __builtin_convertvector(exponential((load(from + at) - highest) / temperature), Doubles);
    double total = 0;
    for (; at < count; ++at) total += exponential(Floats{} + (from[at] - highest) / temperature)[0];
    for (int64_t k = 0; k < kLanes; ++k) total += totals[k];
    sums[i] = total;
  });
}

}  // namespace qwen3

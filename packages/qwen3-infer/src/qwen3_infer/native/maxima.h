// The largest logits of a row by blocks, so that most blocks need no second look.

#pragma once

#include <algorithm>
#include <cfloat>
#include <vector>

#include "weights.h"

namespace qwen3 {

constexpr int64_t kPart = 512;  // logits; a multiple of kLanes
constexpr int64_t kGroups = 16;  // of a block: logits that lie so far apart are of one

struct Maxima {
  std::vector<float> groups, scratch;  // kGroups of each block
  float highest = 0, lowest = 0;
  bool is_finite = false;  // no logit is NaN, and the highest is a number

  // Looks at `size` logits, 1 or more.
  void read(const float* logits, int64_t size) {
    const int64_t num_blocks = (size + kPart - 1) / kPart;
    groups.assign(num_blocks * kGroups, -INFINITY);
    Floats least = Floats{} + INFINITY;
    Ints strange = {};
    float rest_least = INFINITY;
    bool rest_strange = false;
    for (int64_t i = 0; i < num_blocks; ++i) {
      const float* const from = logits + i * kPart;
      const int64_t count = std::min(size - i * kPart, kPart);
      constexpr int64_t kVectors = kGroups / kLanes;
      Floats most[kVectors];
      for (Floats& each : most) each = Floats{} - INFINITY;
      int64_t at = 0;
      for (; at + kGroups <= count; at += kGroups)
        for (int64_t v = 0; v < kVectors; ++v) {
          const Floats each = load(from + at + v * kLanes);
          most[v] = each > most[v] ? each : most[v];
          least = each < least ? each : least;
          strange |= each != each;
        }
      float* const to = groups.data() + i * kGroups;
      std::memcpy(to, most, sizeof most);
      for (int64_t k = 0; at + k < count; ++k) {
        const float each = from[at + k];
        to[k] = std::max(to[k], each);
        rest_least = std::min(rest_least, each);
        rest_strange |= each != each;
      }
    }
    highest = *std::max_element(groups.begin(), groups.end());
    lowest = rest_least;
    for (int64_t k = 0; k < kLanes; ++k) lowest = std::min(lowest, least[k]);
    is_finite = !rest_strange && !bits_of(strange) && std::isfinite(highest);
  }

  // The largest logit of a block.
  float of_block(int64_t block) const {
    const float* const from = groups.data() + block * kGroups;
    return *std::max_element(from, from + kGroups);
  }

  // The lowest id of the highest logit.
  int64_t first_highest(const float* logits, int64_t size) const {
    const int64_t group = std::find(groups.begin(), groups.end(), highest) - groups.begin();
    return std::find(logits + group / kGroups * kPart, logits + size, highest) - logits;
  }

  // A value that at least `count` logits reach and not many more; -FLT_MAX where the maxima are too few to tell.
  float floor_of(int64_t count) {
    // As many maxima of groups are as many logits. Of fewer, larger groups the maxima are found sooner.
    scratch = groups;
    int64_t size = scratch.size();
    while (size >= 16 * count && size % 2 == 0) {
      size /= 2;
      for (int64_t k = 0; k < size; ++k) scratch[k] = std::max(scratch[k], scratch[k + size]);
    }
    if (size < 2 * count) return -FLT_MAX;
    std::nth_element(scratch.begin(), scratch.begin() + count - 1, scratch.begin() + size, std::greater<float>());
    return std::max(scratch[count - 1], -FLT_MAX);
  }

  // A value that at least `count` logits very likely reach, and not many more: what a sample of the logits says.
  float likely_floor_of(int64_t count, const float* logits, int64_t size) {
    constexpr int64_t kStride = 31;  // of no power of two, should the order of logits have a period
    const double share = static_cast<double>(count) / kStride;
    const int64_t rank = static_cast<int64_t>(share + 5 * std::sqrt(share) + 5);  // five standard deviations more
    scratch.clear();
    for (int64_t i = 0; i < size; i += kStride) scratch.push_back(logits[i]);
    if (rank >= static_cast<int64_t>(scratch.size())) return -FLT_MAX;
    std::nth_element(scratch.begin(), scratch.begin() + rank, scratch.end(), std::greater<float>());
    return std::max(scratch[rank], -FLT_MAX);
  }
};

}  // namespace qwen3

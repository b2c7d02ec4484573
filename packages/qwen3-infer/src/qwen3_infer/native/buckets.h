// Where the tokens of a row, likeliest first, reach a count or a sum of weights, without sorting them all.
//
// Logits go into buckets by their distance from the highest, each with a count and a sum. Only the bucket in which the
// count or the sum is reached is taken apart, into smaller ones until few logits are left, which are sorted. The order
// is that of falling logits, and of rising ids among equals. (Selection by distribution: Knuth, The Art of Computer
// Programming, volume 3, 5.2.5 and 5.3.3, here with weights.)

#pragma once

#include <algorithm>
#include <cfloat>
#include <vector>

#include "weights.h"

namespace qwen3 {

// Sums and weights that differ by less, in relation to their own size, may be in another order for numpy: adding up
// 150,000 float64 one after the other rounds by up to 1.7e-11.
constexpr double kDoubt = 1e-10;

// A token at which a count or a sum is reached, with the sums of weights of those before it, and of it too.
struct Reached {
  int64_t id = -1;
  double before = 0, through = 0;
};

class Buckets {
 public:
  double total = 0;   // weight of all that were put in
  int64_t count = 0;  // their number, if it was asked for

  // Puts in `size` logits, of which the weigher has the highest, spread over `span` below it.
  template <bool counts>
  void fill(const float* logits, int64_t size, const Weigher& weigher, float span) {
    weigher_ = weigher, logits_ = logits, size_ = size;
    highest_ = static_cast<float>(weigher.highest), scale_ = std::min(kBuckets / span, FLT_MAX);
    places_.resize(size + kShorts);
    std::fill(places_.begin() + size, places_.end(), kBuckets);
    sums_.assign(2 * kRoom, 0), counts_.assign(kBuckets, 0);
    put_in<counts>();
    total = 0, count = 0;
    for (int64_t i = 0; i < kBuckets; ++i) {
      sums_[i] += sums_[kRoom + i];
      total += sums_[i], count += counts_[i];
    }
  }

  // The token with `rank` others before it, which are fewer than `count`; this must have been asked for.
  Reached at_rank(int64_t rank) {
    return find([rank](double, int64_t through) { return through > rank; });
  }

  // The first token with which the sum is more than `sum`; the last of all if none is.
  Reached at_sum(double sum) {
    return find([sum](double through, int64_t) { return through > sum; });
  }

  // The sum of the weights that are at least `least`, of which `logit` has about that weight; negative where one is so
  // near to it that rounding may decide.
  double sum_from(double least, float logit) {
    const float place = (highest_ - logit) * scale_;
    const int64_t bucket = static_cast<int64_t>(std::max(0.0f, std::min(place, kBuckets - 1.0f)));
    double sum = 0;
    for (int64_t i = 0; i < bucket; ++i) sum += sums_[i];
    collect(bucket);
    for (int64_t i = 0; i < num_members_; ++i) {
      const double weight = weigher_.one(values_[i]);
      // The highest weighs 1, without any rounding.
      if (values_[i] != highest_ && std::abs(weight - least) <= kDoubt * least) return -1;
      sum += weight >= least ? weight : 0;
    }
    return sum;
  }

 private:
  static constexpr int64_t kBuckets = 512, kSmaller = 256, kFew = 24, kShorts = 32;
  static constexpr int64_t kRoom = kBuckets + 8;  // no power of two apart, which processors take for the same place

  template <bool counts>
  void put_in() {
    double *const even = sums_.data(), *const odd = even + kRoom;
    Doubles last_sums = {};
    int64_t at = 0, last_count = 0;
    for (; at + kLanes <= size_; at += kLanes) {
      uint16_t* const places = places_.data() + at;
      const Ints place = place_of(load(logits_ + at), places);
      const Doubles low = weigher_(logits_ + at), high = weigher_(logits_ + at + kDoubles);
      if (!bits_of(place != static_cast<int32_t>(kBuckets - 1))) {
        // Most logits of a trained model are that far below the highest.
        last_sums += low + high, last_count += kLanes;
        continue;
      }
      // Two tables: neighbours in one bucket need not wait for each other.
#pragma GCC unroll 8
      for (int64_t k = 0; k < kDoubles; ++k) {
        even[places[k]] += low[k];
        odd[places[k + kDoubles]] += high[k];
      }
      if (counts)
        for (int64_t k = 0; k < kLanes; ++k) ++counts_[places[k]];
    }
    for (; at < size_; ++at) {
      uint16_t places[kLanes];
      place_of(Floats{} + logits_[at], places);
      places_[at] = places[0];
      even[places[0]] += weigher_.one(logits_[at]);
      counts_[places[0]] += counts;
    }
    for (int64_t k = 0; k < kDoubles; ++k) even[kBuckets - 1] += last_sums[k];
    counts_[kBuckets - 1] += counts ? static_cast<int32_t>(last_count) : 0;
  }

  // The bucket of each of kLanes logits, which is also written to `places`.
  Ints place_of(Floats logits, uint16_t* places) const {
    typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));
    Floats place = (highest_ - logits) * scale_;
    place = place < kBuckets - 1.0f ? place : Floats{} + (kBuckets - 1.0f);
    const Ints whole = __builtin_convertvector(place, Ints);
    const Shorts narrow = __builtin_convertvector(whole, Shorts);
    std::memcpy(places, &narrow, sizeof narrow);
    return whole;
  }

  // The first token that `is_reached` by the sum and the count through it, or the last.
  template <typename Condition>
  Reached find(const Condition& is_reached) {
    Place place = first_of(sums_.data(), counts_.data(), kBuckets, {}, is_reached);
    collect(place.bucket);
    while (num_members_ > kFew) {
      const auto [low, high] = std::minmax_element(values_.begin(), values_.begin() + num_members_);
      if (*low == *high) return take_equal(is_reached, place);
      narrow(is_reached, place, *low, *high);
    }
    return take_of_few(is_reached, place);
  }

  // A bucket, with the sum and the count of what is before it.
  struct Place {
    int64_t bucket = 0;
    double sum = 0;
    int64_t count = 0;
  };

  // The first bucket of some behind `before` that `is_reached`, or the last that is not empty.
  template <typename Condition>
  static Place first_of(const double* sums, const int32_t* counts, int64_t size, Place before,
                        const Condition& is_reached) {
    Place found = before;
    for (int64_t i = 0; i < size; ++i) {
      if (sums[i] == 0) continue;
      found = {i, before.sum, before.count};
      before.sum += sums[i], before.count += counts[i];
      if (is_reached(before.sum, before.count)) break;
    }
    return found;
  }

  // Takes the members of a bucket, by their ids.
  void collect(int64_t bucket) {
    ids_.resize(size_), values_.resize(size_);
    num_members_ = 0;
    for (int64_t at = 0; at < size_; at += kShorts)
      for (uint32_t left = equal_lanes(places_.data() + at, static_cast<uint16_t>(bucket)); left; left &= left - 1) {
        const int64_t id = at + __builtin_ctz(left);
        ids_[num_members_] = static_cast<int32_t>(id), values_[num_members_++] = logits_[id];
      }
  }

  // A bit for each of kShorts numbers that is equal to `wanted`.
  static uint32_t equal_lanes(const uint16_t* numbers, uint16_t wanted) {
#if defined(__AVX512BW__)
    return _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(numbers), _mm512_set1_epi16(static_cast<int16_t>(wanted)));
#else
    uint32_t found = 0;
    for (int64_t k = 0; k < kShorts; ++k) found |= static_cast<uint32_t>(numbers[k] == wanted) << k;
    return found;
#endif
  }

  // Leaves those members that are in one of smaller buckets, which take the place's place.
  template <typename Condition>
  void narrow(const Condition& is_reached, Place& place, float lowest, float highest) {
    const int64_t num_buckets = std::min(kSmaller, num_members_);
    // In float64, which has room for the difference of any two.
    const double scale = num_buckets / (static_cast<double>(highest) - std::max(lowest, -FLT_MAX));
    double sums[kSmaller] = {};
    int32_t counts[kSmaller] = {};
    weights_.resize(num_members_);
    weigher_.all(values_.data(), num_members_, weights_.data());
    const auto bucket_of = [=](float value) {
      return static_cast<int64_t>(std::min((static_cast<double>(highest) - value) * scale, num_buckets - 1.0));
    };
    for (int64_t i = 0; i < num_members_; ++i) {
      const int64_t bucket = bucket_of(values_[i]);
      sums[bucket] += weights_[i], ++counts[bucket];
    }
    place = first_of(sums, counts, num_buckets, place, is_reached);
    int64_t kept = 0;
    for (int64_t i = 0; i < num_members_; ++i) {
      const bool is_in = bucket_of(values_[i]) == place.bucket;
      ids_[kept] = ids_[i], values_[kept] = values_[i];
      kept += is_in;
    }
    num_members_ = kept;
  }

  template <typename Condition>
  Reached take_equal(const Condition& is_reached, const Place& place) const {
    const double weight = weigher_.one(values_[0]);
    int64_t low = 0, high = num_members_ - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (is_reached(place.sum + weight * (middle + 1), place.count + middle + 1)) high = middle;
      else low = middle + 1;
    }
    return {ids_[low], place.sum + weight * low, place.sum + weight * (low + 1)};
  }

  template <typename Condition>
  Reached take_of_few(const Condition& is_reached, const Place& place) const {
    int64_t order[kFew];
    for (int64_t i = 0; i < num_members_; ++i) order[i] = i;
    std::stable_sort(order, order + num_members_, [this](int64_t a, int64_t b) { return values_[a] > values_[b]; });
    Reached found{-1, place.sum, place.sum};
    for (int64_t i = 0; i < num_members_; ++i) {
      found.id = ids_[order[i]], found.before = found.through;
      found.through += weigher_.one(values_[order[i]]);
      if (is_reached(found.through, place.count + i + 1)) break;
    }
    return found;
  }

  Weigher weigher_{};
  const float* logits_ = nullptr;
  int64_t size_ = 0, num_members_ = 0;
  float highest_ = 0, scale_ = 0;
  std::vector<uint16_t> places_;  // the bucket of each logit; kBuckets behind them
  std::vector<double> sums_;  // of each bucket, in two tables
  std::vector<int32_t> counts_;
  std::vector<int32_t> ids_;
  std::vector<float> values_;
  std::vector<double> weights_;
};

}  // namespace qwen3

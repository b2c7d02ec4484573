// The next token of each request of a step, out of its logits: what sampling.sampling says, in less time.
//
// A choice that rounding may decide is left to numpy, as is a row that is not finite.

#pragma once

#include <utility>

#include "buckets.h"
#include "maxima.h"
#include "numpy_weights.h"

namespace qwen3 {

// A request's logits and settings, as native.choose fills them in; all fields have 8 bytes.
struct Row {
  float* logits;
  int64_t size;
  double temperature;  // 0 for the highest logit
  int64_t top_k;       // 0 for all
  double top_p;        // 1 for all
  double min_p;        // 0 for all
  double number;       // random, from 0 to below 1
  // Changes of logits: biases are added, those of tokens that are there divided or multiplied, penalties subtracted, and
  // those of tokens that may not follow become minus infinity.
  int64_t num_biased;
  const int64_t* biased;
  const float* biases;
  int64_t num_seen;
  const int64_t* seen;
  double repetition;
  int64_t num_counted;
  const int64_t* counted;
  const float* subtracted;
  const uint32_t* allowed;  // a bit for each token, null where all may follow
  int64_t num_allowed;      // words of them; tokens behind may not follow
  int64_t num_forbidden;
  const int64_t* forbidden;
  // Logarithms of probabilities, of the logits before any change.
  int64_t wants_logprob;
  int64_t num_top;
  int64_t* top_ids;      // (num_top,), written
  double* top_logprobs;  // (num_top,), written
  double logprob;        // written: of the token
  int64_t token;         // written; -1 where numpy has to choose
};

class Chooser {
 public:
  explicit Chooser(NumpyExponential exponential) : numpy_(exponential) {}

  // Fills in the row's results; its logits are the same afterwards.
  void choose(Row& row) {
    row.token = -1;
    logits_ = row.logits;
    double log_total = 0;
    maxima_.read(logits_, row.size);
    if (!maxima_.is_finite) return;
    const float highest = maxima_.highest;
    if (row.wants_logprob || row.num_top) {
      log_total = std::log(Weigher(highest, 1.0).total(logits_, row.size));
      take_top(row, log_total);
    }
    if (change(row)) maxima_.read(logits_, row.size);
    if (maxima_.is_finite && are_ids_)
      row.token = row.temperature == 0 ? maxima_.first_highest(logits_, row.size) : draw(row);
    for (; !changed_.empty(); changed_.pop_back()) row.logits[changed_.back().first] = changed_.back().second;
    if (row.token >= 0 && row.wants_logprob)
      row.logprob = static_cast<double>(row.logits[row.token]) - highest - log_total;
  }

 private:
  // The likeliest tokens, by falling logits and rising ids.
  void take_top(const Row& row, double log_total) {
    if (row.num_top == 0) return;
    const float floor = maxima_.floor_of(row.num_top);
    likeliest_.clear();
    for (int64_t start = 0; start < row.size; start += kPart) {
      if (maxima_.of_block(start / kPart) < floor) continue;
      for (int64_t i = start; i < std::min(start + kPart, row.size); ++i)
        if (logits_[i] >= floor) likeliest_.push_back({-logits_[i], i});
    }
    const int64_t count = std::min<int64_t>(row.num_top, likeliest_.size());
    std::partial_sort(likeliest_.begin(), likeliest_.begin() + count, likeliest_.end());
    for (int64_t i = 0; i < row.num_top; ++i) {
      row.top_ids[i] = i < count ? likeliest_[i].second : -1;
      row.top_logprobs[i] = i < count ? -static_cast<double>(likeliest_[i].first) - maxima_.highest - log_total : 0;
    }
  }

  // Makes of the logits those to choose from; returns whether they differ. Those in the row come back afterwards.
  bool change(const Row& row) {
    are_ids_ = true;
    for (int64_t i = 0; i < row.num_biased; ++i)
      set(row, row.biased[i], [&](float old) { return old + row.biases[i]; });
    // Keskar et al. 2019 (CTRL), section 4.1, with transformers' treatment of negative logits.
    const float repetition = static_cast<float>(row.repetition);
    for (int64_t i = 0; i < row.num_seen; ++i)
      set(row, row.seen[i], [&](float old) { return old > 0 ? old / repetition : old * repetition; });
    for (int64_t i = 0; i < row.num_counted; ++i)
      set(row, row.counted[i], [&](float old) { return old - row.subtracted[i]; });
    if (row.allowed != nullptr) keep_allowed(row);
    for (int64_t i = 0; i < row.num_forbidden; ++i) set(row, row.forbidden[i], [](float) { return -INFINITY; });
    return !changed_.empty() || logits_ != row.logits;
  }

  template <typename New>
  void set(const Row& row, int64_t id, const New& changed) {
    if (id < 0 || id >= row.size) {
      are_ids_ = false;
      return;
    }
    if (logits_ == row.logits) changed_.push_back({id, logits_[id]});
    logits_[id] = changed(logits_[id]);
  }

  // Goes on with a copy in which all but the allowed tokens have minus infinity.
  void keep_allowed(const Row& row) {
    constexpr int64_t kBits = 32;
    kept_.resize(row.size);
    for (int64_t start = 0; start < row.size; start += kBits) {
      const uint32_t word = start / kBits < row.num_allowed ? row.allowed[start / kBits] : 0;
      const int64_t count = std::min(row.size - start, kBits);
      for (int64_t i = 0; i < count; ++i) kept_[start + i] = word >> i & 1 ? logits_[start + i] : -INFINITY;
    }
    logits_ = kept_.data();
  }

  int64_t draw(const Row& row) {
    // Beyond these float32 or float64 has no room for what follows.
    if (row.temperature < 1e-6 || row.temperature > 1e6 || (row.min_p > 0 && row.min_p < 1e-30)) return -1;
    numpy_.set(maxima_.highest, row.temperature);
    if (row.top_k == 0 && row.top_p == 1 && row.min_p == 0) return numpy_.draw(logits_, row.size, row.number);
    fill(row);
    double sum = buckets_.total;
    if (0 < row.top_k && row.top_k < buckets_.count) sum = buckets_.at_rank(row.top_k - 1).through;
    double least_kept = 0;
    if (row.top_p < 1) {
      Reached last;
      if (!reach_top_p(row, sum, last)) return -1;
      sum = std::min(sum, last.through);
      least_kept = last.through - last.before;
    }
    if (least_kept < 2 * row.min_p + 1e-9 && row.min_p > 0) {  // rounded in the difference
      const double logit = maxima_.highest + row.temperature * std::log(row.min_p);
      const double likely = buckets_.sum_from(row.min_p, static_cast<float>(std::max<double>(logit, -FLT_MAX)));
      if (likely < 0) return -1;
      sum = std::min(sum, likely);
    }
    const Reached drawn = buckets_.at_sum(row.number * sum);
    if (lies_near(row.number * sum, drawn, kDoubt * buckets_.total)) return -1;
    return are_taken_ ? ids_[drawn.id] : drawn.id;
  }

  // Finds the last token that top_p keeps, of those that top_k has left with a `sum`; returns whether it is certain.
  bool reach_top_p(const Row& row, double sum, Reached& last) {
    last = buckets_.at_sum(row.top_p * sum);
    double slack = kDoubt * buckets_.total;
    if (row.top_k == 0) {
      // numpy's sum is one of float32 exponentials, wrong by up to 4 units in the last place, of float32 quotients, by
      // 2 half ones. With p the probabilities, the mean of p * -log(weight) is at most log(size).
      const double most = std::min((maxima_.highest - maxima_.lowest) / row.temperature, std::log(row.size));
      if (!lies_near(row.top_p * sum, last, sum * (6e-7 + 1.3e-7 * most))) return true;
      if (!numpy_.are_known()) return false;
      sum = numpy_.sum(logits_, row.size);
      last = buckets_.at_sum(row.top_p * sum);
    }
    return !lies_near(row.top_p * sum, last, slack);
  }

  // Whether a sum lies so near to where a token begins or ends that another rounding may lead to its neighbour.
  static bool lies_near(double sum, const Reached& token, double slack) {
    return (token.before > 0 && std::abs(sum - token.before) <= slack) || std::abs(token.through - sum) <= slack;
  }

  // Puts those logits into buckets that may count.
  void fill(const Row& row) {
    const float highest = maxima_.highest;
    if (row.top_k > 0) {
      const int64_t count = std::min(row.top_k, row.size);
      float floor = maxima_.floor_of(count);
      if (floor == -FLT_MAX) floor = maxima_.likely_floor_of(count, logits_, row.size);
      take_from(floor, row.size);
      if (num_taken_ < count && floor > -FLT_MAX) take_from(-FLT_MAX, row.size);
      fill_with_taken<true>(row);
    } else if (row.top_p == 1) {
      const double least = highest + row.temperature * std::log(row.min_p);
      const double margin = 1e-5 * (std::abs(least) + row.temperature);  // far more than rounding
      take_from(static_cast<float>(std::max<double>(least - margin, -FLT_MAX)), row.size);
      fill_with_taken<false>(row);
    } else {
      // All logits beyond this together weigh less than a tenth of what top_p cuts away.
      const double most = row.temperature * std::log(10 * row.size / (1 - row.top_p));
      const double span = std::min(most, static_cast<double>(highest) - maxima_.lowest);
      buckets_.fill<false>(logits_, row.size, Weigher(highest, row.temperature), clamped(span));
      are_taken_ = false;
    }
  }

  template <bool counts>
  void fill_with_taken(const Row& row) {
    const double span = static_cast<double>(maxima_.highest) - std::max(maxima_.lowest, taken_floor_);
    buckets_.fill<counts>(values_.data(), num_taken_, Weigher(maxima_.highest, row.temperature), clamped(span));
    are_taken_ = true;
  }

  static float clamped(double span) { return static_cast<float>(std::min<double>(span, FLT_MAX)); }

  // Takes the logits that reach a finite floor, with their ids, in their order.
  void take_from(float floor, int64_t size) {
    if (static_cast<int64_t>(values_.size()) < size + kLanes) values_.resize(size + kLanes), ids_.resize(size + kLanes);
    int64_t found = 0;
    for (int64_t start = 0; start < size; start += kPart) {
      if (maxima_.of_block(start / kPart) < floor) continue;
      const int64_t end = std::min(start + kPart, size);
      int64_t at = start;
#if defined(__AVX512F__)
      const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      for (; at + kLanes <= end; at += kLanes) {
        const __m512 each = _mm512_loadu_ps(logits_ + at);
        const __mmask16 reach = _mm512_cmp_ps_mask(each, _mm512_set1_ps(floor), _CMP_GE_OQ);
        const __m512i ids = _mm512_add_epi32(steps, _mm512_set1_epi32(static_cast<int32_t>(at)));
        _mm512_storeu_ps(values_.data() + found, _mm512_maskz_compress_ps(reach, each));
        _mm512_storeu_si512(ids_.data() + found, _mm512_maskz_compress_epi32(reach, ids));
        found += __builtin_popcount(reach);
      }
#endif
      for (; at < end; ++at) {
        values_[found] = logits_[at], ids_[found] = static_cast<int32_t>(at);
        found += logits_[at] >= floor;
      }
    }
    num_taken_ = found, taken_floor_ = floor;
  }

  NumpyWeights numpy_;
  Maxima maxima_;
  Buckets buckets_;
  std::vector<std::pair<float, int64_t>> likeliest_;
  std::vector<std::pair<int64_t, float>> changed_;  // ids with their old logits
  std::vector<float> values_;  // logits that may count, where not all do
  std::vector<int32_t> ids_;
  int64_t num_taken_ = 0;
  float taken_floor_ = 0;
  bool are_taken_ = false;  // whether the buckets have these
  std::vector<float> kept_;
  float* logits_ = nullptr;  // those to choose from
  bool are_ids_ = true;      // whether all tokens that were to be changed are of this vocabulary
};

// Chooses for all rows, each on one thread; the exponential is the same in every call.
inline void choose_rows(Row* rows, int64_t num_rows, NumpyExponential exponential) {
  for_each(num_rows, 1, [=](int64_t i) {
    thread_local Chooser chooser(exponential);
    chooser.choose(rows[i]);
  });
}

}  // namespace qwen3

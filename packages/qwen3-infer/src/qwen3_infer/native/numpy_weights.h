// Weights as numpy computes them in float32: quotients of float32, and numpy's own loop for their exponentials.
//
// numpy's float32 exponential is wrong by some units in the last place, other ones on other processors. Sums of it that
// are to lead to the same token have to be of the same numbers.

#pragma once

#include <cmath>
#include <vector>

#include "buckets.h"
#include "maxima.h"

namespace qwen3 {

typedef void (*Loop)(char** arrays, const intptr_t* count, const intptr_t* strides, void* data);

struct NumpyExponential {
  Loop loop;  // null where it is not known
  void* data;
};

class NumpyWeights {
 public:
  explicit NumpyWeights(NumpyExponential exponential) : exponential_(exponential) {}

  bool are_known() const { return exponential_.loop != nullptr; }

  void set(float highest, double temperature) { highest_ = highest, temperature_ = static_cast<float>(temperature); }

  // The sum of the weights of `size` logits.
  double sum(const float* logits, int64_t size) {
    double total = 0;
    for (int64_t start = 0; start < size; start += kPart)
      total += sum_of_part(logits + start, std::min(size - start, kPart));
    return total;
  }

  // Draws without any cut, in the order of ids: first a part of them, then one of it. Returns -1 where numpy's own
  // rounding in float64 may decide.
  int64_t draw(const float* logits, int64_t size, double number) {
    if (!are_known()) return -1;
    ends_.clear();
    double total = 0;
    for (int64_t start = 0; start < size; start += kPart)
      ends_.push_back(total += sum_of_part(logits + start, std::min(size - start, kPart)));
    const double wanted = number * total, slack = kDoubt * total;
    const int64_t part = std::upper_bound(ends_.begin(), ends_.end() - 1, wanted) - ends_.begin();
    const int64_t start = part * kPart, count = std::min(size - start, kPart);
    weigh(logits + start, count);
    double through = part ? ends_[part - 1] : 0;
    for (int64_t i = 0; i < count; ++i) {
      const double before = through;
      through += weights_[i];
      if (through <= wanted && i + 1 < count) continue;
      const bool is_near = through - wanted <= slack || (start + i > 0 && wanted - before <= slack);
      return is_near ? -1 : start + i;
    }
    return -1;
  }

 private:
  double sum_of_part(const float* logits, int64_t count) {
    weigh(logits, count);
    Doubles sums = {};
    int64_t at = 0;
    for (; at + kDoubles <= count; at += kDoubles) sums += widen(weights_ + at);
    double total = 0;
    for (int64_t k = 0; k < kDoubles; ++k) total += sums[k];
    for (; at < count; ++at) total += weights_[at];
    return total;
  }

  void weigh(const float* logits, int64_t count) {
    if (temperature_ == 1)
      for (int64_t i = 0; i < count; ++i) quotients_[i] = logits[i] - highest_;
    else
      for (int64_t i = 0; i < count; ++i) quotients_[i] = (logits[i] - highest_) / temperature_;
    char* arrays[] = {reinterpret_cast<char*>(quotients_), reinterpret_cast<char*>(weights_)};
    const intptr_t number = count, strides[] = {sizeof(float), sizeof(float)};
    exponential_.loop(arrays, &number, strides, exponential_.data);
  }

  const NumpyExponential exponential_;
  alignas(64) float quotients_[kPart];
  // Not next to it: numpy takes a slower loop, with other rounding, for arrays that touch each other.
  float highest_ = 0, temperature_ = 1;
  std::vector<double> ends_;
  alignas(64) float weights_[kPart];
};

}  // namespace qwen3

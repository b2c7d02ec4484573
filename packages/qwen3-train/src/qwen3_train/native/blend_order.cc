// The order of a blend, one sample after the other: each from the file that is most behind its share.
//
// Products and differences are rounded apart (-ffp-contract=off), as numpy rounds them; the last bit decides
// between files that are equally far behind.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {
constexpr int64_t kLanes = 8;
}

// Serves samples `first` to `first + count`. `served` has, and gets, the samples of each of `num_files` so far;
// `left` is how many each has, or null where they begin anew.
extern "C" void qwen3_blend_order(const double* shares, const int64_t* left, int64_t num_files, int64_t first,
                                  int64_t count, int64_t* served, int32_t* files, int64_t* numbers) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const int64_t room = (num_files + kLanes - 1) / kLanes * kLanes;
  std::vector<double> share(room, 0.0), taken(room, 0.0), lag(room, kNever), never(room, kNever);
  for (int64_t file = 0; file < num_files; ++file) {
    share[file] = shares[file];
    taken[file] = static_cast<double>(served[file]);
    never[file] = left && served[file] >= left[file] ? kNever : 0.0;
  }
  for (int64_t sample = 0; sample < count; ++sample) {
    const double at = std::max(static_cast<double>(first + sample), 1.0);
    for (int64_t file = 0; file < room; ++file) lag[file] = share[file] * at - taken[file] + never[file];
    double most[kLanes];
    std::fill(most, most + kLanes, kNever);
    for (int64_t file = 0; file < room; file += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        most[lane] = lag[file + lane] > most[lane] ? lag[file + lane] : most[lane];
    const double behind = *std::max_element(most, most + kLanes);
    const int64_t chosen = std::find(lag.begin(), lag.end(), behind) - lag.begin();
    files[sample] = static_cast<int32_t>(chosen);
    numbers[sample] = served[chosen]++;
    taken[chosen] += 1.0;
    if (left && served[chosen] >= left[chosen]) never[chosen] = kNever;
  }
}

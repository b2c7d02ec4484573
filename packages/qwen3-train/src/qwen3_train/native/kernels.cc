// Two operations of a training step on a CPU, each in one pass over memory, which is what they wait for.
//
// MindSpore calls them as custom operators ("aot"): pointers, ranks and shapes of inputs, then of the output.
// Both write into inputs; the output, one float, says that they have.

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kAlone = 1 << 16;  // Elements below which threads cost more than they save.

int ThreadCount() {
  static const int count = [] {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    const char* stated = std::getenv("OMP_NUM_THREADS");
    int wanted = stated ? std::atoi(stated) : 0;
    return std::max(1, wanted > 0 ? std::min(wanted, cores) : cores);
  }();
  return count;
}

int64_t Size(int rank, const int64_t* shape) {
  int64_t size = 1;
  for (int axis = 0; axis < rank; ++axis) size *= shape[axis];
  return size;
}

// Calls part(first, last) for equal parts of 0 to size, side by side.
template <class Part>
void InParts(int64_t size, Part part) {
  int64_t count = size < kAlone ? 1 : ThreadCount();
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i)
    threads.emplace_back(part, size * i / count, size * (i + 1) / count);
  part(0, size / count);
  for (auto& thread : threads) thread.join();
}

}  // namespace

// weight, m, v, gradient (N each), then scalars of one element: rate, eps, the share of the weight that decays,
// the factor of the gradient, and beta1, beta2 as one tensor of two.
// Kingma and Ba 2015, algorithm 1, with the bias correction in rate and eps; decay as Loshchilov and Hutter 2019.
extern "C" int qwen3_adamw(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  if (count != 10) return 1;
  auto* weight = static_cast<float*>(data[0]);
  auto* m = static_cast<float*>(data[1]);
  auto* v = static_cast<float*>(data[2]);
  const auto* gradient = static_cast<const float*>(data[3]);
  const float rate = *static_cast<float*>(data[4]), eps = *static_cast<float*>(data[5]);
  const float decay = *static_cast<float*>(data[6]), scale = *static_cast<float*>(data[7]);
  const auto* betas = static_cast<const float*>(data[8]);
  const float new1 = 1.0f - betas[0], new2 = 1.0f - betas[1];
  InParts(Size(ranks[0], shapes[0]), [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float g = gradient[i] * scale;
      const float own_m = m[i] + (g - m[i]) * new1;
      const float own_v = v[i] + (g * g - v[i]) * new2;
      const float kept = weight[i] - weight[i] * decay;
      m[i] = own_m;
      v[i] = own_v;
      weight[i] = kept - rate * own_m / (std::sqrt(own_v) + eps);
    }
  });
  *static_cast<float*>(data[9]) = 0.0f;
  return 0;
}

// table (V, D), ids (M) int32, rows (M, D): adds each row to the table's row of its id, in the order of M.
extern "C" int qwen3_add_rows(int count, void** data, int*, int64_t** shapes, const char**, void*, void*) {
  if (count != 4) return 1;
  auto* table = static_cast<float*>(data[0]);
  const auto* ids = static_cast<const int32_t*>(data[1]);
  const auto* rows = static_cast<const float*>(data[2]);
  const int64_t size = shapes[0][0], width = shapes[0][1], num_rows = shapes[1][0];
  for (int64_t row = 0; row < num_rows; ++row) {
    if (ids[row] < 0 || ids[row] >= size) continue;
    float* target = table + ids[row] * width;
    for (int64_t i = 0; i < width; ++i) target[i] += rows[row * width + i];
  }
  *static_cast<float*>(data[3]) = 0.0f;
  return 0;
}

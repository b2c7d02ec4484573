// Products on all threads.

#pragma once

#include <initializer_list>

#include "tiles.h"

namespace qwen3 {

constexpr int64_t kLittle = 1 << 17;  // multiply-adds below which a second thread does not pay

// Room on this thread for so many floats, until it is asked for again; each `use` has its own.
template <int use>
inline float* room(int64_t size) {
  static thread_local std::vector<Line> lines;
  const int64_t wanted = (size + kLanes - 1) / kLanes;
  if (static_cast<int64_t>(lines.size()) < wanted) lines.resize(wanted);
  return lines.data()->lanes;
}

// Packs all rows of x (num_rows, num_inputs) for products with a kind of weights; before(m) is called for each row
// before it is packed, on the thread that packs it.
template <typename Weight, typename Before>
const float* pack_rows(Weight weight, const float* x, int64_t num_rows, int64_t num_inputs, const Before& before) {
  constexpr int64_t kUnit = Weight::kUnit;
  float* const packed = room<0>(packed_size(weight, num_rows, num_inputs));
  for_each((num_rows + kUnit - 1) / kUnit, kSmall / num_inputs / kUnit + 1, [&](int64_t unit) {
    for (int64_t m = unit * kUnit; m < (unit + 1) * kUnit && m < num_rows; ++m) before(m);
    pack(weight, x, num_rows, num_inputs, unit, packed);
  });
  return packed;
}

// One of several matrices that meet the same rows.
template <typename Weight>
struct Matrix {
  const typename Weight::Stored* w;  // (num_outputs, num_inputs)
  int64_t num_outputs;
  float* y;  // (num_rows, num_outputs)
};

// Multiplies packed rows by each of the matrices; after(number, first, count) is called when these outputs of a matrix
// are there for all rows, on the thread that has computed them.
template <typename Weight, int number, typename After>
void multiply(Weight weight, const float* packed, int64_t num_rows, int64_t num_inputs,
              const Matrix<Weight> (&matrices)[number], const After& after) {
  int64_t starts[number + 1] = {}, num_outputs = 0;
  for (const Matrix<Weight>& matrix : matrices) num_outputs += matrix.num_outputs;
  const bool is_little = num_rows * num_inputs * num_outputs < kLittle;
  for (int i = 0; i < number; ++i) {
    const int64_t size = is_little ? matrices[i].num_outputs : Weight::kChunk;
    starts[i + 1] = starts[i] + (matrices[i].num_outputs + size - 1) / size;
  }
  const auto work = [&](int64_t chunk) {
    int i = 0;
    while (chunk >= starts[i + 1]) ++i;
    const Matrix<Weight>& matrix = matrices[i];
    const int64_t size = is_little ? matrix.num_outputs : Weight::kChunk, first = (chunk - starts[i]) * size;
    const int64_t count = matrix.num_outputs - first < size ? matrix.num_outputs - first : size;
    multiply_part(weight, packed, matrix.w + first * num_inputs, num_rows, count, num_inputs, matrix.y + first,
                  matrix.num_outputs);
    after(i, first, count);
  };
  if (is_little)
    for (int64_t chunk = 0; chunk < starts[number]; ++chunk) work(chunk);
  else
    Pool::shared().run_in_order(starts[number], work);
}

template <typename Weight>
void linear(Weight weight, const float* x, const typename Weight::Stored* w, float* y, int64_t num_rows,
            int64_t num_inputs, int64_t num_outputs) {
  const float* packed = pack_rows(weight, x, num_rows, num_inputs, [](int64_t) {});
  const Matrix<Weight> only[] = {{w, num_outputs, y}};
  multiply(weight, packed, num_rows, num_inputs, only, [](int, int64_t, int64_t) {});
}

}  // namespace qwen3

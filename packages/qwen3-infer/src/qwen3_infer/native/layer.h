// A whole decoder layer: the operations that stand alone in kernels.cc, one after the other, with the same bits.

#pragma once

#include "attention.h"
#include "product.h"
#include "rows.h"

namespace qwen3 {

// What is added to a product with a matrix (outputs, inputs): b (outputs, rank) times scale times a (rank, inputs) times
// the same inputs. None where `rank` is 0.
struct Adapter {
  const float *a, *b;
  int64_t rank;
  float scale;
};

// Numbers of a layer's matrices.
enum { kQ, kK, kV, kO, kGate, kUp, kDown, kMatrices };

// The weights of a layer and its cache. `native/structures.py` has the same fields.
struct LayerWeights {
  const float *input_norm, *q_norm, *k_norm, *post_norm;
  const void* matrices[kMatrices];
  Adapter adapters[kMatrices];
  float *keys, *values;
};

// What all layers have alike.
struct LayerShape {
  int64_t hidden, inner;  // widths
  float eps;
};

// Adds to y (num_rows, num_outputs) what the adapter makes of x (num_rows, num_inputs).
inline void add_adapter(const Adapter& adapter, const float* x, int64_t num_rows, int64_t num_inputs,
                        int64_t num_outputs, float* y) {
  if (adapter.rank == 0) return;
  float* const low = room<6>(num_rows * adapter.rank);
  linear(Float32{}, x, adapter.a, low, num_rows, num_inputs, adapter.rank);
  for (int64_t i = 0; i < num_rows * adapter.rank; ++i) low[i] *= adapter.scale;
  float* const added = room<7>(num_rows * num_outputs);
  linear(Float32{}, low, adapter.b, added, num_rows, adapter.rank, num_outputs);
  for_each(num_rows * num_outputs, kSmall, [=](int64_t i) { y[i] += added[i]; });
}

// One decoder layer for M = batch * length tokens: x (M, hidden) becomes what it is with the layer's outputs added. cos
// and sin are (M, width / 2). Of the rows the last `wanted` are right afterwards: all, or fewer of a batch of one.
template <typename Weight>
void compute_layer(Weight weight, const LayerWeights& layer, const LayerShape& shape, const Attention& all,
                   const float* cosines, const float* sines, float* all_x, int64_t wanted) {
  const int64_t tokens = all.batch * all.length, hidden = shape.hidden, inner = shape.inner, width = all.width;
  const int64_t q_width = all.num_heads * width, kv_width = all.num_kv_heads * width, skipped = tokens - wanted;
  float* const normed = room<1>(tokens * hidden);
  float* const q = room<2>(tokens * (q_width + 2 * kv_width));
  float *const k = q + tokens * q_width, *const v = k + tokens * kv_width, *const x = all_x + skipped * hidden;
  const auto matrix = [&](int i) { return static_cast<const typename Weight::Stored*>(layer.matrices[i]); };
  const auto norm = [=, &shape](const float* by, const float* from, int64_t rows) {
    return pack_rows(weight, normed, rows, hidden, [=, &shape](int64_t m) {
      norm_row(from + m * hidden, by, hidden, shape.eps, normed + m * hidden);
    });
  };
  const auto nothing = [](int, int64_t, int64_t) {};
  // Adds the product of `from` (wanted, num_inputs) and matrix number i to x.
  const auto add_product = [&](int i, const float* from, int64_t num_inputs) {
    float* const y = room<8>(wanted * hidden);
    const auto add = [=](int64_t first, int64_t count) {
      for (int64_t m = 0; m < wanted; ++m)
        for (int64_t o = first; o < first + count; ++o) x[m * hidden + o] += y[m * hidden + o];
    };
    const bool is_adapted = layer.adapters[i].rank != 0;
    const Matrix<Weight> only[] = {{matrix(i), hidden, y}};
    const float* const packed = pack_rows(weight, from, wanted, num_inputs, [](int64_t) {});
    multiply(weight, packed, wanted, num_inputs, only, [=](int, int64_t first, int64_t count) {
      if (!is_adapted) add(first, count);
    });
    if (!is_adapted) return;
    add_adapter(layer.adapters[i], from, wanted, num_inputs, hidden, y);
    add(0, hidden);
  };

  const Matrix<Weight> projections[] = {{matrix(kQ), q_width, q}, {matrix(kK), kv_width, k}, {matrix(kV), kv_width, v}};
  multiply(weight, norm(layer.input_norm, all_x, tokens), tokens, hidden, projections, nothing);
  for (int i : {kQ, kK, kV})
    add_adapter(layer.adapters[i], normed, tokens, hidden, projections[i].num_outputs, projections[i].y);

  const int64_t num_q = tokens * all.num_heads, half = width / 2;
  for_each(num_q + tokens * all.num_kv_heads, kSmall / width + 1, [=, &layer, &shape, &all](int64_t number) {
    const bool is_query = number < num_q;
    const int64_t row = is_query ? number : number - num_q;
    const int64_t token = row / (is_query ? all.num_heads : all.num_kv_heads);
    float* const head = (is_query ? q : k) + row * width;
    static thread_local std::vector<float> between;
    if (static_cast<int64_t>(between.size()) < width) between.resize(width);
    norm_row(head, is_query ? layer.q_norm : layer.k_norm, width, shape.eps, between.data());
    rotate_row(between.data(), cosines + token * half, sines + token * half, half, head);
  });
  store(all, k, v);
  Attention of = all;
  if (skipped > 0) of.length = wanted, of.positions += skipped;
  float* const attended = room<3>(wanted * q_width);
  attend_all(of, q + skipped * q_width, attended);
  add_product(kO, attended, q_width);

  float *const gated = room<4>(wanted * inner), *const up = room<5>(wanted * inner);
  const float* const packed = norm(layer.post_norm, x, wanted);
  const bool is_adapted = layer.adapters[kGate].rank != 0 || layer.adapters[kUp].rank != 0;
  const int64_t num_chunks = (inner + Weight::kChunk - 1) / Weight::kChunk;
  Pool::shared().run_in_order(num_chunks, [=](int64_t chunk) {
    const int64_t first = chunk * Weight::kChunk;
    const int64_t count = inner - first < Weight::kChunk ? inner - first : Weight::kChunk;
    multiply_part(weight, packed, matrix(kGate) + first * hidden, wanted, count, hidden, gated + first, inner);
    multiply_part(weight, packed, matrix(kUp) + first * hidden, wanted, count, hidden, up + first, inner);
    if (is_adapted) return;
    for (int64_t m = 0; m < wanted; ++m) {
      const int64_t at = m * inner + first;
      swiglu_row(gated + at, up + at, count, gated + at);
    }
  });
  if (is_adapted) {
    add_adapter(layer.adapters[kGate], normed, wanted, hidden, inner, gated);
    add_adapter(layer.adapters[kUp], normed, wanted, hidden, inner, up);
    for_each(wanted, kSmall / inner + 1,
             [=](int64_t m) { swiglu_row(gated + m * inner, up + m * inner, inner, gated + m * inner); });
  }
  add_product(kDown, gated, inner);
}

}  // namespace qwen3

// A whole decoder layer: the operations that stand alone in kernels.cc, one after the other, with the same bits and
// without what starting each of them takes.

#pragma once

#include "attention.h"
#include "product.h"
#include "rows.h"

namespace qwen3 {

// The weights of a layer; norms in float32.
template <typename Weight>
struct Layer {
  typedef const typename Weight::Stored* Matrix;
  const float *input_norm, *q_norm, *k_norm, *post_norm;
  Matrix q, k, v, o, gate, up, down;
  int64_t hidden, inner;  // widths
  float eps;
};

// x (M, hidden) to y, for M = batch * length tokens; cos and sin (M, width / 2).
template <typename Weight>
void compute_layer(Weight weight, const Layer<Weight>& layer, const Attention& of, const float* cosines, const float* sines,
            const float* x, float* y) {
  const int64_t tokens = of.batch * of.length, hidden = layer.hidden, inner = layer.inner, width = of.width;
  const int64_t q_width = of.num_heads * width, kv_width = of.num_kv_heads * width;
  float* const normed = room<1>(tokens * hidden);
  float* const q = room<2>(tokens * (q_width + 2 * kv_width));
  float *const k = q + tokens * q_width, *const v = k + tokens * kv_width;
  const auto norm = [&](const float* from, const float* by) {
    return pack_rows(weight, normed, tokens, hidden, [=, &layer](int64_t m) {
      norm_row(from + m * hidden, by, hidden, layer.eps, normed + m * hidden);
    });
  };
  // y = from + product, for some outputs of every row.
  const auto add = [=](const float* from) {
    return [=](int, int64_t first, int64_t count) {
      for (int64_t m = 0; m < tokens; ++m)
        for (int64_t i = first; i < first + count; ++i) y[m * hidden + i] += from[m * hidden + i];
    };
  };
  const auto nothing = [](int, int64_t, int64_t) {};

  const Matrix<Weight> projections[] = {{layer.q, q_width, q}, {layer.k, kv_width, k}, {layer.v, kv_width, v}};
  multiply(weight, norm(x, layer.input_norm), tokens, hidden, projections, nothing);

  const int64_t num_q = tokens * of.num_heads, half = width / 2;
  for_each(num_q + tokens * of.num_kv_heads, kSmall / width + 1, [=, &layer, &of](int64_t number) {
    const bool is_query = number < num_q;
    const int64_t row = is_query ? number : number - num_q;
    const int64_t token = row / (is_query ? of.num_heads : of.num_kv_heads);
    float* const head = (is_query ? q : k) + row * width;
    static thread_local std::vector<float> between;
    if (static_cast<int64_t>(between.size()) < width) between.resize(width);
    norm_row(head, is_query ? layer.q_norm : layer.k_norm, width, layer.eps, between.data());
    rotate_row(between.data(), cosines + token * half, sines + token * half, half, head);
  });
  float* const attended = room<3>(tokens * q_width);
  store(of, k, v);
  attend_all(of, q, attended);

  const Matrix<Weight> out[] = {{layer.o, hidden, y}};
  const float* packed = pack_rows(weight, attended, tokens, q_width, [](int64_t) {});
  multiply(weight, packed, tokens, q_width, out, add(x));

  float* const gated = room<4>(tokens * inner);
  packed = norm(y, layer.post_norm);
  const int64_t num_chunks = (inner + Weight::kChunk - 1) / Weight::kChunk;
  Pool::shared().run_in_order(num_chunks, [=, &layer](int64_t chunk) {
    const int64_t first = chunk * Weight::kChunk;
    const int64_t count = inner - first < Weight::kChunk ? inner - first : Weight::kChunk;
    float* const up = room<5>(tokens * count);
    multiply_part(weight, packed, layer.gate + first * hidden, tokens, count, hidden, gated + first, inner);
    multiply_part(weight, packed, layer.up + first * hidden, tokens, count, hidden, up, count);
    for (int64_t m = 0; m < tokens; ++m) {
      float* const gate = gated + m * inner + first;
      swiglu_row(gate, up + m * count, count, gate);
    }
  });

  // The stream that the layer adds to is y now.
  float* const fed = room<1>(tokens * hidden);
  const Matrix<Weight> down[] = {{layer.down, hidden, fed}};
  packed = pack_rows(weight, gated, tokens, inner, [](int64_t) {});
  multiply(weight, packed, tokens, inner, down, [=](int, int64_t first, int64_t count) {
    for (int64_t m = 0; m < tokens; ++m)
      for (int64_t i = first; i < first + count; ++i) y[m * hidden + i] += fed[m * hidden + i];
  });
}

}  // namespace qwen3

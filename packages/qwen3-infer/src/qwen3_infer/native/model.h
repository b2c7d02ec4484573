// The whole model, from ids to hidden states and from these to logits.

#pragma once

#include "layer.h"

namespace qwen3 {

// Weights, cache and sizes of a model. `native/structures.py` has the same fields.
struct Model {
  int64_t num_layers, hidden, inner, num_heads, num_kv_heads, width, vocabulary;
  int64_t cache_tokens;  // of each key/value head and layer
  float eps, turn_scale;
  int32_t is_bfloat16, rounds_inputs;
  const void *embedding, *head;  // (vocabulary, hidden)
  const float *norm, *frequencies;  // (hidden,); radians per token of each pair of a head's elements
  Adapter embedding_adapter, head_adapter;  // the first has rows of (vocabulary, rank) for `a`
  const LayerWeights* layers;
};

// Tokens of some regions of the cache, `length` each.
struct Tokens {
  int64_t batch, length;
  const int32_t *ids, *positions;  // (batch, length)
  const int32_t* starts;           // (batch,), the first tokens of the regions
};

// Row number `id` of (rows, width).
inline void embed_row(const void* rows, bool is_bfloat16, int64_t id, int64_t width, float* y) {
  if (!is_bfloat16) {
    std::memcpy(y, static_cast<const float*>(rows) + id * width, width * sizeof(float));
    return;
  }
  const uint16_t* const from = static_cast<const uint16_t*>(rows) + id * width;
  for (int64_t k = 0; k < width; ++k) y[k] = widen_one(from[k]);
}

// Whether all ids are in the vocabulary, and all tokens in the cache at consecutive positions.
inline bool fit(const Model& model, const Tokens& tokens) {
  if (tokens.batch < 1 || tokens.length < 1) return false;
  for (int64_t i = 0; i < tokens.batch * tokens.length; ++i)
    if (tokens.ids[i] < 0 || tokens.ids[i] >= model.vocabulary) return false;
  for (int64_t b = 0; b < tokens.batch; ++b) {
    const int64_t first = tokens.positions[b * tokens.length], start = tokens.starts[b];
    if (start < 0 || first < 0 || start + first + tokens.length > model.cache_tokens) return false;
    for (int64_t l = 0; l < tokens.length; ++l)
      if (tokens.positions[b * tokens.length + l] != first + l) return false;
  }
  return true;
}

inline void embed_all(const Model& model, const Tokens& tokens, float* x) {
  const int64_t count = tokens.batch * tokens.length, hidden = model.hidden;
  for (int64_t m = 0; m < count; ++m)
    embed_row(model.embedding, model.is_bfloat16, tokens.ids[m], hidden, x + m * hidden);
  const Adapter& adapter = model.embedding_adapter;
  if (adapter.rank == 0) return;
  std::vector<float> low(count * adapter.rank), added(count * hidden);
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < adapter.rank; ++r)
      low[m * adapter.rank + r] = adapter.a[tokens.ids[m] * adapter.rank + r] * adapter.scale;
  linear(Float32{}, low.data(), adapter.b, added.data(), count, adapter.rank, hidden);
  for (int64_t i = 0; i < count * hidden; ++i) x[i] += added[i];
}

// The last hidden states of the last `wanted` of `tokens` after the last norm, (wanted, hidden); the keys and values of
// all go into the cache.
template <typename Weight>
void compute_hidden(Weight weight, const Model& model, const Tokens& tokens, int64_t wanted, float* y) {
  const int64_t count = tokens.batch * tokens.length, half = model.width / 2, hidden = model.hidden;
  Attention of{tokens.batch, tokens.length, model.num_heads, model.num_kv_heads, model.width,
               nullptr,      nullptr,       tokens.positions, {}};
  for (int64_t b = 0; b < tokens.batch; ++b)
    for (int64_t j = 0; j < model.num_kv_heads; ++j)
      of.starts.push_back(j * model.cache_tokens + tokens.starts[b]);
  float *const cosines = room<9>(2 * count * half), *const sines = cosines + count * half;
  for_each(count, kSmall / model.width, [=, &model, &tokens](int64_t m) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(tokens.positions[m]) * model.frequencies[i];
      // In double precision, so that each is the nearest float32 whatever the library.
      cosines[m * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * model.turn_scale;
      sines[m * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * model.turn_scale;
    }
  });
  float* const x = room<10>(count * hidden);
  embed_all(model, tokens, x);
  for (int64_t i = 0; i < model.num_layers; ++i) {
    of.keys = model.layers[i].keys, of.values = model.layers[i].values;
    compute_layer(weight, model.layers[i], LayerShape{hidden, model.inner, model.eps}, of, cosines, sines, x,
                  i + 1 < model.num_layers ? count : wanted);
  }
  const float* const last = x + (count - wanted) * hidden;
  for_each(wanted, kSmall / hidden + 1,
           [=, &model](int64_t m) { norm_row(last + m * hidden, model.norm, hidden, model.eps, y + m * hidden); });
}

// The logits (num_rows, vocabulary) of hidden states.
template <typename Weight>
void compute_head(Weight weight, const Model& model, const float* hidden, int64_t num_rows, float* y) {
  linear(weight, hidden, static_cast<const typename Weight::Stored*>(model.head), y, num_rows, model.hidden,
         model.vocabulary);
  add_adapter(model.head_adapter, hidden, num_rows, model.hidden, model.vocabulary, y);
}

}  // namespace qwen3

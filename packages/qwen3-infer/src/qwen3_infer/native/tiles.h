// Products of float32 rows and bfloat16 weights by a processor's tile multiplier (x86's AMX), which multiplies
// bfloat16 exactly and adds to float32.
//
// A float32 has 24 bits and is the exact sum of three bfloat16 of 8 bits each. All three meet the weights, so no row is
// rounded. The products with the upper part have sums of their own: those with the lower two are some 2^8 times
// smaller, and rounding them at the size of the whole would cost accuracy.
//
// Element (output, row) of a tile depends on that output's weights and that row alone, in the order of k, so a row's
// result has the same bits in any number of rows.

#pragma once

#include "linear.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define QWEN3_HAS_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qwen3 {

#if defined(QWEN3_HAS_TILES)

// Whether this process may use tiles, whose registers Linux gives only to those that ask.
inline bool has_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool is_granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return is_granted;
}

// Rows that meet bfloat16 weights in `parts` bfloat16 each: three hold a float32, one is the nearest bfloat16.
template <int parts>
struct Tiled {
  typedef uint16_t Stored;
  static constexpr int64_t kUnit = 16;   // rows that are packed together, at most
  static constexpr int64_t kChunk = 128;  // outputs that a thread takes at a time
};

constexpr int64_t kTile = 16;            // rows of a tile, and columns of float32
constexpr int64_t kInputs = 2 * kTile;   // of a step: bfloat16 in a row of a tile
constexpr int64_t kOutputs = 2 * kTile;  // that are computed together
constexpr int64_t kAhead = 1 << 16;      // bytes that few rows fetch ahead, besides the outputs that come next

// A register of 16 rows of up to 64 bytes: 0 to 3 have sums, 4 and 5 weights, 6 and 7 packed rows.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  explicit TileShapes(int64_t num_columns) {
    for (int tile = 0; tile < 8; ++tile) {
      num_rows[tile] = kTile;
      row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? 64 : 4 * num_columns);
    }
  }
};

// How the parts of `count` packed rows become columns of tiles, for one step after the other.
template <int parts>
struct Columns {
  // With three parts of few rows, the upper part has sums beside those of the lower two: each step takes a tile of the
  // upper and the middle part, then one of zeros and the lowest. Else each part has tiles of its own.
  static constexpr int64_t kBeside = parts == 3 ? 8 : 0;
  int64_t count, num_tiles, width;

  explicit Columns(int64_t rows)
      : count(rows), num_tiles(rows <= kBeside ? 2 : parts), width(rows <= kBeside ? 2 * rows : rows) {}
  bool beside() const { return count <= kBeside; }
  int64_t step_size() const { return num_tiles * kTile * width; }  // words
};

// Turns 16 vectors of 16 into their columns.
inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = (__m512)_mm512_unpacklo_pd((__m512d)t[i], (__m512d)t[i + 2]);
    r[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i], (__m512d)t[i + 2]);
    r[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
    r[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
  }
  for (int half = 0; half < 16; half += 8)
    for (int i = 0; i < 4; ++i) {
      t[half + i] = _mm512_shuffle_f32x4(r[half + i], r[half + 4 + i], 0x88);
      t[half + 4 + i] = _mm512_shuffle_f32x4(r[half + i], r[half + 4 + i], 0xdd);
    }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
  }
}

// The bfloat16 pairs of one step of a row, for each part: a word has an even input below and the next one above.
template <int parts>
inline void split(__m512 even, __m512 odd, __m512i (&words)[parts]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  if constexpr (parts == 1) {
    // To the nearest, ties to even; of both halves of a word in their places.
    const auto nearest = [](__m512 value) {
      const __m512i bits = _mm512_castps_si512(value);
      const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
      // Adding to the bits of a NaN may make another number of it.
      return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), bits);
    };
    words[0] = _mm512_or_si512(_mm512_srli_epi32(nearest(even), 16), _mm512_and_si512(nearest(odd), upper));
    return;
  }
  for (int part = 0; part < parts; ++part) {
    const __m512i even_bits = _mm512_and_si512(_mm512_castps_si512(even), upper);
    const __m512i odd_bits = _mm512_and_si512(_mm512_castps_si512(odd), upper);
    words[part] = _mm512_or_si512(_mm512_srli_epi32(even_bits, 16), odd_bits);
    even = _mm512_sub_ps(even, _mm512_castsi512_ps(even_bits));
    odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(odd_bits));
  }
}

template <int parts>
inline int64_t packed_size(Tiled<parts>, int64_t num_rows, int64_t num_inputs) {
  constexpr int64_t kUnit = Tiled<parts>::kUnit;
  const int64_t words =
      num_rows / kUnit * Columns<parts>(kUnit).step_size() + Columns<parts>(num_rows % kUnit).step_size();
  return round_up(num_inputs, kInputs) / kInputs * words;
}

// Packs the rows of unit number `unit`.
template <int parts>
void pack(Tiled<parts> weight, const float* x, int64_t num_rows, int64_t num_inputs, int64_t unit, float* packed) {
  constexpr int64_t kUnit = Tiled<parts>::kUnit;
  const int64_t first = unit * kUnit, count = num_rows - first < kUnit ? num_rows - first : kUnit;
  const Columns<parts> columns(count);
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const __mmask16 own = static_cast<__mmask16>((1u << columns.width) - 1);
  float* to = packed + packed_size(weight, first, num_inputs);
  x += first * num_inputs;
  __m512 tiles[parts][kTile];
  for (auto& tile : tiles)
    for (__m512& column : tile) column = _mm512_setzero_ps();
  for (int64_t k = 0; k < num_inputs; k += kInputs) {
    for (int64_t m = 0; m < count; ++m) {
      const float* from = x + m * num_inputs + k;
      float rest[kInputs];
      if (k + kInputs > num_inputs) {
        std::memset(rest, 0, sizeof rest);
        std::memcpy(rest, from, (num_inputs - k) * sizeof(float));
        from = rest;
      }
      const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + kTile);
      __m512i words[parts];
      split<parts>(_mm512_permutex2var_ps(a, evens, b), _mm512_permutex2var_ps(a, odds, b), words);
      for (int part = 0; part < parts; ++part) {
        const bool is_second = columns.beside() && part > 0;
        tiles[is_second ? part - 1 : part][is_second ? count + m : m] = _mm512_castsi512_ps(words[part]);
      }
    }
    for (int64_t tile = 0; tile < columns.num_tiles; ++tile) {
      __m512 turned[kTile];
      std::memcpy(turned, tiles[tile], sizeof turned);
      transpose(turned);
      for (int i = 0; i < kTile; ++i, to += columns.width) _mm512_mask_storeu_ps(to, own, turned[i]);
    }
  }
}

// Copies the weights of a step that reach beyond the matrix, with zeros for what is not there; 32 of them a row.
inline const uint16_t* edge(const uint16_t* w, int64_t stride, int64_t num_outputs, int64_t num_inputs,
                            uint16_t* copy) {
  std::memset(copy, 0, kOutputs * kInputs * sizeof(uint16_t));
  for (int64_t o = 0; o < num_outputs && o < kOutputs; ++o)
    std::memcpy(copy + o * kInputs, w + o * stride, (num_inputs < kInputs ? num_inputs : kInputs) * sizeof(uint16_t));
  return copy;
}

// Fetches `lines` lines of memory into the second cache.
inline void fetch(const char* from, int64_t lines) {
  for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(from + 64 * line, 0, 2);
}

// The sums of 16 outputs: row i of each tile is output i, and has the upper part at `upper` and the lower two at
// `lower`, unless that is null. Stores the first `num_outputs`.
inline void store_outputs(const float* upper, const float* lower, int64_t width, int64_t count, int64_t num_outputs,
                          float* y, int64_t y_stride) {
  const __mmask16 own = static_cast<__mmask16>((1u << count) - 1);
  const __mmask16 wanted = static_cast<__mmask16>(num_outputs < kTile ? (1u << num_outputs) - 1 : 0xffff);
  __m512 found[kTile];
  for (int i = 0; i < kTile; ++i) {
    found[i] = _mm512_maskz_loadu_ps(own, upper + i * width);
    if (lower) found[i] = _mm512_add_ps(found[i], _mm512_maskz_loadu_ps(own, lower + i * width));
  }
  transpose(found);
  for (int64_t m = 0; m < count; ++m) _mm512_mask_storeu_ps(y + m * y_stride, wanted, found[m]);
}

// 32 outputs of packed rows whose sums lie side by side, from the weights at `w` (outputs, num_inputs), into
// y[row * y_stride + output]; of the outputs the first `num_outputs` are stored. Weights farther on are fetched.
template <int parts>
__attribute__((noinline)) void narrow_outputs(const float* packed, Columns<parts> columns, const uint16_t* w,
                                              int64_t num_inputs, int64_t num_outputs, float* y, int64_t y_stride) {
  const int64_t row_bytes = 4 * columns.width, tile_size = kTile * columns.width;
  const char* next = reinterpret_cast<const char*>(w + kOutputs * num_inputs) + kAhead;
  alignas(64) uint16_t copy[kOutputs * kInputs];
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < num_inputs; k += kInputs, packed += columns.step_size()) {
    const uint16_t* at = w + k;
    int64_t stride = num_inputs;
    if (k + kInputs > num_inputs || num_outputs < kOutputs)
      at = edge(at, num_inputs, num_outputs, num_inputs - k, copy), stride = kInputs;
    fetch(next, kOutputs);
    next += 64 * kOutputs;
    _tile_loadd(6, packed, row_bytes);
    if constexpr (parts == 3) _tile_loadd(7, packed + tile_size, row_bytes);
    _tile_loadd(4, at, 2 * stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, at + kTile * stride, 2 * stride);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (parts == 3) {
      _tile_dpbf16ps(0, 4, 7);
      _tile_dpbf16ps(1, 5, 7);
    }
  }
  alignas(64) float sums[2][kTile * kTile];
  _tile_stored(0, sums[0], row_bytes);
  _tile_stored(1, sums[1], row_bytes);
  for (int64_t block = 0; block < 2 && block * kTile < num_outputs; ++block)
    store_outputs(sums[block], parts == 3 ? sums[block] + columns.count : nullptr, columns.width, columns.count,
                  num_outputs - block * kTile, y + block * kTile, y_stride);
}

// The same for more rows, whose sums of the upper part and of the lower two have tiles of their own.
inline __attribute__((noinline)) void wide_outputs(const float* packed, Columns<3> columns, const uint16_t* w,
                                                   int64_t num_inputs, int64_t num_outputs, bool fetches_next, float* y,
                                                   int64_t y_stride) {
  const int64_t row_bytes = 4 * columns.width, tile_size = kTile * columns.width;
  const char* next = reinterpret_cast<const char*>(w + kOutputs * num_inputs);
  alignas(64) uint16_t copy[kOutputs * kInputs];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < num_inputs; k += kInputs, packed += columns.step_size()) {
    const uint16_t* at = w + k;
    int64_t stride = num_inputs;
    if (k + kInputs > num_inputs || num_outputs < kOutputs)
      at = edge(at, num_inputs, num_outputs, num_inputs - k, copy), stride = kInputs;
    if (fetches_next) fetch(next, kOutputs);
    next += 64 * kOutputs;
    _tile_loadd(4, at, 2 * stride);
    _tile_loadd(6, packed, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, at + kTile * stride, 2 * stride);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, packed + tile_size, row_bytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, packed + 2 * tile_size, row_bytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 5, 6);
  }
  alignas(64) float sums[4][kTile * kTile];
  _tile_stored(0, sums[0], row_bytes);
  _tile_stored(1, sums[1], row_bytes);
  _tile_stored(2, sums[2], row_bytes);
  _tile_stored(3, sums[3], row_bytes);
  for (int64_t block = 0; block < 2 && block * kTile < num_outputs; ++block)
    store_outputs(sums[block], sums[2 + block], columns.width, columns.count, num_outputs - block * kTile,
                  y + block * kTile, y_stride);
}

// Packed rows times `num_outputs` rows of weights, on this thread. The weights stay in the second cache while the rows
// come once, which may be more than it holds.
template <int parts>
void multiply_part(Tiled<parts> weight, const float* packed, const uint16_t* w, int64_t num_rows, int64_t num_outputs,
                   int64_t num_inputs, float* y, int64_t y_stride) {
  constexpr int64_t kUnit = Tiled<parts>::kUnit;
  int64_t configured = 0;
  for (int64_t m = 0; m < num_rows; m += kUnit)
    for (int64_t o = 0; o < num_outputs; o += kOutputs) {
      const Columns<parts> columns(num_rows - m < kUnit ? num_rows - m : kUnit);
      if (columns.width != configured) {
        const TileShapes shapes(columns.width);
        _tile_loadconfig(&shapes);
        configured = columns.width;
      }
      const float* const rows = packed + packed_size(weight, m, num_inputs);
      const uint16_t* const from = w + o * num_inputs;
      float* const to = y + m * y_stride + o;
      if constexpr (parts == 3) {
        if (!columns.beside()) {
          wide_outputs(rows, columns, from, num_inputs, num_outputs - o, m == 0, to, y_stride);
          continue;
        }
      }
      narrow_outputs<parts>(rows, columns, from, num_inputs, num_outputs - o, to, y_stride);
    }
  // Else each switch to another thread saves the tiles.
  _tile_release();
}

#else

inline bool has_tiles() { return false; }

#endif

}  // namespace qwen3

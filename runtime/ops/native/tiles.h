// What kernels that multiply queries with keys share: rows of a head in float32, transposed keys, scores.
#pragma once

#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "number.h"
#include "varlen_attention.h"
#include "vector.h"

namespace esm2 {
// Every instruction set has its own copy of everything below.
namespace {

constexpr int rows = ESM2_ROWS;
// Keys that are multiplied at once; their floats lie together.
constexpr int64_t panel_keys = 2 * width;
// Between asking for a row and reading it.
constexpr int64_t rows_ahead = 16;
constexpr float log2_e = 1.44269504088896340736f;

// Memory of one thread, kept between calls.
class Scratch {
 public:
  float* take(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(64, round_up(4 * floats, 64)));
      size_ = data_ ? floats : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};
thread_local Scratch scratch;

// scores[M][keys] = q[M][D] . panel[D][keys] for N vectors of keys; `highest` follows each row's maximum.
// Rows of scores lie `stride` apart.
template <int M, int N>
inline void scores_of(const float* q, int64_t q_stride, const float* panel, int64_t dim, float* scores,
                      int64_t stride, Vec* highest) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = Vec{};
  for (int64_t d = 0; d < dim; ++d) {
    Vec key[N];
    for (int n = 0; n < N; ++n) key[n] = load(panel + d * panel_keys + n * width);
    for (int m = 0; m < M; ++m) {
      const Vec query = splat(q[m * q_stride + d]);
      for (int n = 0; n < N; ++n) sums[m][n] += query * key[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      store(scores + m * stride + n * width, sums[m][n]);
      highest[m] = larger(sums[m][n], highest[m]);
    }
}

// What one protein has in one head: rows of `dim` numbers, and rotary's tables from its first token on.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  int64_t dim;
  Rotary rotary;

  // Asks for row `i`, which may lie beyond the last. Rows lie too far apart for the processor to see that
  // they are read in turn.
  void prefetch(int64_t i) const {
    const char* from = reinterpret_cast<const char*>(data + i * stride);
    for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(from + byte);
  }

  // Row `i` in float32, rotated; where it must be made, in `memory` of `dim` floats.
  const float* row(int64_t i, float* __restrict memory) const {
    const T* from = data + i * stride;
    if (rotary.cos) {
      const float *cos = rotary.cos + i * dim, *sin = rotary.sin + i * dim;
      const int64_t half = dim / 2;
      for (int64_t d = 0; d < half; ++d)
        memory[d] = to_float(from[d]) * cos[d] + to_float(from[d + half]) * sin[d];
      for (int64_t d = half; d < dim; ++d)
        memory[d] = to_float(from[d]) * cos[d] + to_float(from[d - half]) * sin[d];
      return memory;
    }
    if constexpr (std::is_same_v<T, float>) return from;
    for (int64_t d = 0; d < dim; ++d) memory[d] = to_float(from[d]);
    return memory;
  }
};

// A row of `dim` floats times `scale`, with zeros up to a whole vector.
inline void copy_row(const float* from, int64_t dim, float scale, float* to) {
  for (int64_t d = 0; d < dim; d += width) store(to + d, load_some(from + d, dim - d) * splat(scale));
}

// One vector of keys, or fewer and zeros, into its panel. `memory`: of [width, dim].
template <typename T>
void pack_keys(const Rows<T>& from, int64_t first, int64_t num_keys, float* memory, float* panel) {
  const int64_t dim = from.dim;
  const float* keys[width] = {};
  for (int64_t i = 0; i < std::min(width, num_keys); ++i) {
    from.prefetch(first + i + rows_ahead);
    keys[i] = from.row(first + i, memory + i * dim);
  }
  for (int64_t d = 0; d < dim; d += width) {
    Vec square[width];
    for (int64_t i = 0; i < width; ++i) square[i] = keys[i] ? load_some(keys[i] + d, dim - d) : Vec{};
    transpose(square);
    for (int64_t i = 0; i < std::min(width, dim - d); ++i) store(panel + (d + i) * panel_keys, square[i]);
  }
}

}  // namespace
}  // namespace esm2

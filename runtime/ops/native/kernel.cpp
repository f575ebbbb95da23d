// Attention of one task, blocked with online softmax: FlashAttention's loops (arXiv:2205.14135) laid
// out for head dims of 16 to 128 on a CPU. Compiled once for each instruction set, with
//   ESM2_ISA       the name of the instruction set, and of the kernel
//   ESM2_WIDTH     floats in a vector
//   ESM2_ROWS      queries that attend together
// GCC's and Clang's vector extensions carry it to any processor.
//
// Scores of ESM2_ROWS queries and a block of keys are computed into a tile that stays in the first
// cache. Vectors run along the keys for scores and exponentials, and along the head dim for the values, so
// nothing is ever summed across a vector but once a row. Keys are packed transposed, values as rows.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#include "varlen_attention.h"
#include "vector.h"

#define ESM2_PASTE2(a, b) a##b
#define ESM2_PASTE(a, b) ESM2_PASTE2(a, b)
#define ESM2_STRING2(a) #a
#define ESM2_STRING(a) ESM2_STRING2(a)

namespace esm2 {
// Every instruction set has its own copy of everything below.
namespace {

constexpr int rows = ESM2_ROWS;
// Keys of a block: transposed keys and values of head dim 16 take 64 KiB, and the tile 12.
constexpr int64_t block_keys = 512;
// Keys that are multiplied at once; their floats lie together.
constexpr int64_t panel_keys = 2 * width;
// Products that one register adds up: float32 errors grow with the length of a sum.
constexpr int64_t summed_keys = 128;
// Copies of several heads that stay in the second cache: 256 KiB.
constexpr int64_t cache_floats = 1 << 16;
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
template <int M, int N>
inline void scores_of(const float* q, int64_t q_stride, const float* panel, int64_t dim, float* scores,
                      Vec* highest) {
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
      store(scores + m * block_keys + n * width, sums[m][n]);
      highest[m] = larger(sums[m][n], highest[m]);
    }
}

// out[M][N vectors] = p[M][keys] . v[keys][N vectors] + scale[M] * out, without `scale` the product alone.
template <int M, int N>
inline void attend(const float* p, const float* v, int64_t v_stride, int64_t keys, float* out,
                   const float* scale) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = Vec{};
  for (int64_t j = 0; j < keys; ++j) {
    Vec value[N];
    for (int n = 0; n < N; ++n) value[n] = load(v + j * v_stride + n * width);
    for (int m = 0; m < M; ++m) {
      const Vec weight = splat(p[m * block_keys + j]);
      for (int n = 0; n < N; ++n) sums[m][n] += weight * value[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float* to = out + m * v_stride + n * width;
      store(to, scale ? sums[m][n] + load(to) * splat(scale[m]) : sums[m][n]);
    }
}

// One block of packed keys and values.
struct Block {
  const float* keys;  // panels of [dim, panel_keys]
  const float* values;  // [num_keys, values_stride]
  int64_t values_stride;
  int64_t num_keys;
};

template <int M>
constexpr std::array<float, M> ones() {
  std::array<float, M> values{};
  for (float& value : values) value = 1.0f;
  return values;
}

// Attention of M queries with one block. `first`: nothing was attended before.
template <int M>
void tile(const float* q, int64_t q_stride, int64_t dim, const Block& block, float* scores, bool first,
          float* maxima, float* sums, float* out) {
  Vec highest[M];
  for (int m = 0; m < M; ++m) highest[m] = splat(-std::numeric_limits<float>::infinity());
  const int64_t padded = round_up(block.num_keys, width), whole = block.num_keys / width * width;
  int64_t j = 0;
  for (; j + panel_keys <= whole; j += panel_keys)
    scores_of<M, 2>(q, q_stride, block.keys + j * dim, dim, scores + j, highest);
  const float* panel = block.keys + j * dim;
  for (; j < whole; j += width, panel += width)
    scores_of<M, 1>(q, q_stride, panel, dim, scores + j, highest);
  if (whole < padded) {
    Vec with_padding[M];
    scores_of<M, 1>(q, q_stride, panel, dim, scores + j, with_padding);
    IntVec is_key;
    for (int64_t i = 0; i < width; ++i) is_key[i] = whole + i < block.num_keys ? -1 : 0;
    for (int m = 0; m < M; ++m) {
      float* last = scores + m * block_keys + whole;
      const Vec kept = is_key ? load(last) : splat(-std::numeric_limits<float>::infinity());
      store(last, kept);
      highest[m] = larger(kept, highest[m]);
    }
  }
  float rescale[M];
  for (int m = 0; m < M; ++m) {
    Vec top = maximum_of_lanes(highest[m]);
    if (!first) top = larger(top, splat(maxima[m]));
    float* row = scores + m * block_keys;
    Vec total{};
    for (int64_t i = 0; i < padded; i += width) {
      const Vec p = exp2_of(load(row + i) - top);
      total += p;
      store(row + i, p);
    }
    rescale[m] = first ? 0.0f : exp2_of(splat(maxima[m]) - top)[0];
    maxima[m] = top[0];
    sums[m] = (first ? 0.0f : sums[m] * rescale[m]) + sum_of_lanes(total)[0];
  }
  static constexpr auto unscaled = ones<M>();
  for (int64_t begin = 0; begin < block.num_keys; begin += summed_keys) {
    const float* scale = begin ? unscaled.data() : first ? nullptr : rescale;
    const int64_t keys = std::min(summed_keys, block.num_keys - begin);
    const float* values = block.values + begin * block.values_stride;
    int64_t d = 0;
    for (; d + 2 * width <= block.values_stride; d += 2 * width)
      attend<M, 2>(scores + begin, values + d, block.values_stride, keys, out + d, scale);
    for (; d < block.values_stride; d += width)
      attend<M, 1>(scores + begin, values + d, block.values_stride, keys, out + d, scale);
  }
}

using Tile = void (*)(const float*, int64_t, int64_t, const Block&, float*, bool, float*, float*,
                      float*);

template <int... M>
constexpr auto tiles_of(std::integer_sequence<int, M...>) {
  return std::array<Tile, sizeof...(M)>{tile<M + 1>...};
}
// tiles[m - 1] takes m queries.
constexpr auto tiles = tiles_of(std::make_integer_sequence<int, rows>{});

// A row of `dim` floats times `scale`, with zeros up to a whole vector.
template <typename T>
inline void copy_row(const T* from, int64_t dim, float scale, float* to) {
  for (int64_t d = 0; d < dim; d += width)
    store(to + d, load_some(from + d, dim - d) * splat(scale));
}

// The rows of one protein in one head.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  T* row(int64_t i) const { return data + i * stride; }
};

// One vector of keys, or fewer and zeros, into its panel.
template <typename T>
void pack_keys(const Rows<T>& from, int64_t first, int64_t num_keys, int64_t dim, float* panel) {
  for (int64_t d = 0; d < dim; d += width) {
    Vec square[width];
    for (int64_t i = 0; i < width; ++i)
      square[i] = i < num_keys ? load_some(from.row(first + i) + d, dim - d) : Vec{};
    transpose(square);
    for (int64_t i = 0; i < std::min(width, dim - d); ++i) store(panel + (d + i) * panel_keys, square[i]);
  }
}

// Float copies of what one head needs, in the memory of a thread.
struct Head {
  float* keys;    // [block_keys / panel_keys, dim, panel_keys]
  float* values;  // [block_keys, wide]
  float* q;       // [queries, wide], scaled
  float* out;     // [queries, wide]
  float* maxima;  // [queries]
  float* sums;    // [queries]
};

struct Sizes {
  int64_t dim, wide, queries, num_keys;

  int64_t of_head() const {
    return round_up(num_keys * (dim + wide) + queries * (2 * wide + 2), 16);
  }
  Head head(float* memory) const {
    float* values = memory + num_keys * dim;
    float* q = values + num_keys * wide;
    float* out = q + queries * wide;
    float* maxima = out + queries * wide;
    return {memory, values, q, out, maxima, maxima + queries};
  }
};

// Heads are copied several at a time: a token's heads lie side by side, and memory is read in order.
template <typename T>
void run_heads(const Problem& problem, const Task& task, const Sizes& sizes, int64_t first_head,
               int64_t num_heads, float* memory, float* scores) {
  const int64_t start = problem.cu_seqlens[task.protein];
  const int64_t length = problem.cu_seqlens[task.protein + 1] - start;
  const int64_t dim = sizes.dim, wide = sizes.wide, queries = sizes.queries;
  const auto rows_of = [&](const Strided& x, int64_t h) {
    return Rows<const T>{static_cast<const T*>(x.data) + start * x.token_stride +
                             (first_head + h) * x.head_stride,
                         x.token_stride};
  };
  const auto head_of = [&](int64_t h) { return sizes.head(memory + h * sizes.of_head()); };

  const float scale = problem.softmax_scale * log2_e;
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t h = 0; h < num_heads; ++h)
      copy_row(rows_of(problem.q, h).row(task.begin + i), dim, scale, head_of(h).q + i * wide);
  for (int64_t begin = 0; begin < length; begin += block_keys) {
    const int64_t num_keys = std::min(block_keys, length - begin);
    for (int64_t j = 0; j < num_keys; j += width)
      for (int64_t h = 0; h < num_heads; ++h)
        pack_keys(rows_of(problem.k, h), begin + j, num_keys - j, dim,
                  head_of(h).keys + j / panel_keys * panel_keys * dim + j % panel_keys);
    for (int64_t j = 0; j < num_keys; ++j)
      for (int64_t h = 0; h < num_heads; ++h)
        copy_row(rows_of(problem.v, h).row(begin + j), dim, 1.0f, head_of(h).values + j * wide);
    // Tiles as even as they can be: one of a few queries would leave the arithmetic units idle.
    const int64_t num_tiles = (queries + rows - 1) / rows;
    for (int64_t h = 0; h < num_heads; ++h) {
      const Head head = head_of(h);
      const Block block{head.keys, head.values, wide, num_keys};
      for (int64_t t = 0; t < num_tiles; ++t) {
        const int64_t i = t * queries / num_tiles, here = (t + 1) * queries / num_tiles - i;
        tiles[here - 1](head.q + i * wide, wide, dim, block, scores, begin == 0, head.maxima + i,
                        head.sums + i, head.out + i * wide);
      }
    }
  }
  T* to = static_cast<T*>(problem.out) +
          ((start + task.begin) * problem.num_heads + first_head) * dim;
  for (int64_t i = 0; i < queries; ++i, to += problem.num_heads * dim)
    for (int64_t h = 0; h < num_heads; ++h) {
      const Head head = head_of(h);
      const float inverse = 1.0f / head.sums[i];
      for (int64_t d = 0; d < dim; ++d)
        from_float(head.out[i * wide + d] * inverse, to[h * dim + d]);
    }
}

template <typename T>
void run(const Problem& problem, const Task& task) {
  const int64_t length = problem.cu_seqlens[task.protein + 1] - problem.cu_seqlens[task.protein];
  const int64_t dim = problem.head_dim;
  const Sizes sizes{dim, round_up(dim, width), task.end - task.begin,
                    round_up(std::min(length, block_keys), panel_keys)};
  const int64_t together = std::clamp<int64_t>(cache_floats / sizes.of_head(), 1,
                                               task.last_head - task.first_head);
  float* memory = scratch.take(together * sizes.of_head() + rows * block_keys);
  float* scores = memory + together * sizes.of_head();
  for (int64_t head = task.first_head; head < task.last_head; head += together)
    run_heads<T>(problem, task, sizes, head, std::min(together, task.last_head - head), memory,
                 scores);
}

void run_any(const Problem& problem, const Task& task) {
  switch (problem.dtype) {
    case Dtype::float32: return run<float>(problem, task);
    case Dtype::float16: return run<Float16>(problem, task);
    case Dtype::bfloat16: return run<BFloat16>(problem, task);
  }
}

}  // namespace

extern const Kernel ESM2_PASTE(kernel_, ESM2_ISA);
const Kernel ESM2_PASTE(kernel_, ESM2_ISA) = {ESM2_STRING(ESM2_ISA), run_any};

}  // namespace esm2

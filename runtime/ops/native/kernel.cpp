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
#include <utility>

#include "tiles.h"

#define ESM2_PASTE2(a, b) a##b
#define ESM2_PASTE(a, b) ESM2_PASTE2(a, b)
#define ESM2_STRING2(a) #a
#define ESM2_STRING(a) ESM2_STRING2(a)

namespace esm2 {
// Every instruction set has its own copy of everything below.
namespace {

// Keys of a block: transposed keys and values of head dim 16 take 64 KiB, and the tile 12.
constexpr int64_t block_keys = 512;
// Products that one register adds up: float32 errors grow with the length of a sum.
constexpr int64_t summed_keys = 128;

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
    scores_of<M, 2>(q, q_stride, block.keys + j * dim, dim, scores + j, block_keys, highest);
  const float* panel = block.keys + j * dim;
  for (; j < whole; j += width, panel += width)
    scores_of<M, 1>(q, q_stride, panel, dim, scores + j, block_keys, highest);
  if (whole < padded) {
    Vec with_padding[M];
    scores_of<M, 1>(q, q_stride, panel, dim, scores + j, block_keys, with_padding);
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

// Float copies of what one head needs, in the memory of a thread.
struct Copies {
  float* keys;    // [block_keys / panel_keys, dim, panel_keys]
  float* values;  // [block_keys, wide]
  float* q;       // [queries, wide], scaled
  float* out;     // [queries, wide]
  float* maxima;  // [queries]
  float* sums;    // [queries]
  float* scores;  // [rows, block_keys]
  float* made;    // [width, dim]
};

Copies allocate(int64_t dim, int64_t wide, int64_t queries, int64_t num_keys) {
  const int64_t sizes[] = {num_keys * dim, num_keys * wide, queries * wide,    queries * wide,
                           queries,        queries,         rows * block_keys, width * dim};
  int64_t total = 0;
  for (const int64_t size : sizes) total += round_up(size, 16);
  float *memory = scratch.take(total), *parts[8];
  for (int i = 0; i < 8; memory += round_up(sizes[i++], 16)) parts[i] = memory;
  return {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7]};
}

// Dim: the head dim, which a compiler should know, or 0.
template <typename T, int64_t Dim>
void run_head(const Problem& problem, const Task& task, int64_t head, const Copies& to) {
  const int64_t start = problem.cu_seqlens[task.protein];
  const int64_t length = problem.cu_seqlens[task.protein + 1] - start;
  const int64_t dim = Dim ? Dim : problem.head_dim, wide = round_up(dim, width);
  const int64_t queries = task.end - task.begin;
  const auto rows_of = [&](const Strided& x, Rotary rotary) {
    if (rotary.cos) rotary = {rotary.cos + start * dim, rotary.sin + start * dim};
    const T* data = static_cast<const T*>(x.data) + start * x.token_stride + head * x.head_stride;
    return Rows<T>{data, x.token_stride, dim, rotary};
  };
  const auto q = rows_of(problem.q, problem.rotary), k = rows_of(problem.k, problem.rotary),
             v = rows_of(problem.v, {});

  const float scale = problem.softmax_scale * log2_e;
  for (int64_t i = 0; i < queries; ++i) {
    q.prefetch(task.begin + i + rows_ahead);
    copy_row(q.row(task.begin + i, to.made), dim, scale, to.q + i * wide);
  }
  for (int64_t begin = 0; begin < length; begin += block_keys) {
    const int64_t num_keys = std::min(block_keys, length - begin);
    for (int64_t j = 0; j < num_keys; j += width)
      pack_keys(k, begin + j, num_keys - j, to.made,
                to.keys + j / panel_keys * panel_keys * dim + j % panel_keys);
    for (int64_t j = 0; j < num_keys; ++j) {
      v.prefetch(begin + j + rows_ahead);
      copy_row(v.row(begin + j, to.made), dim, 1.0f, to.values + j * wide);
    }
    const Block block{to.keys, to.values, wide, num_keys};
    // Tiles as even as they can be: one of a few queries would leave the arithmetic units idle.
    const int64_t num_tiles = (queries + rows - 1) / rows;
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t i = t * queries / num_tiles, here = (t + 1) * queries / num_tiles - i;
      tiles[here - 1](to.q + i * wide, wide, dim, block, to.scores, begin == 0, to.maxima + i,
                      to.sums + i, to.out + i * wide);
    }
  }
  const int64_t stride = problem.num_heads * dim;
  T* out = static_cast<T*>(problem.out) + (start + task.begin) * stride + head * dim;
  for (int64_t i = 0; i < queries; ++i, out += stride) {
    __builtin_prefetch(out + rows_ahead * stride, 1);
    const float inverse = 1.0f / to.sums[i];
    for (int64_t d = 0; d < dim; ++d) from_float(to.out[i * wide + d] * inverse, out[d]);
  }
}

template <typename T>
void run(const Problem& problem, const Task& task) {
  const int64_t length = problem.cu_seqlens[task.protein + 1] - problem.cu_seqlens[task.protein];
  const int64_t dim = problem.head_dim;
  const Copies copies = allocate(dim, round_up(dim, width), task.end - task.begin,
                                 round_up(std::min(length, block_keys), panel_keys));
  const auto run = dim == 16   ? run_head<T, 16>
                   : dim == 24 ? run_head<T, 24>
                   : dim == 32 ? run_head<T, 32>
                   : dim == 64 ? run_head<T, 64>
                               : run_head<T, 0>;
  for (int64_t head = task.first_head; head < task.last_head; ++head) run(problem, task, head, copies);
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

// The kernels of contacts.h, compiled once for each instruction set as kernel.cpp is.
//
// fair-esm's contact head (esm/modules.py:317) is a logistic regression over all heads' maps A, cut to the
// residues, made symmetric and corrected by their average product (Dunn et al. 2008). Of a layer it adds
//   sum over heads of w (A + A^T - r r^T / s),   r = row sums + column sums of A, s = the sum of r:
// one [n, n] sum of maps and one r for each head are enough, whatever the number of heads.

#include <algorithm>
#include <array>
#include <utility>

#include "contacts.h"
#include "tiles.h"

#define ESM2_PASTE2(a, b) a##b
#define ESM2_PASTE(a, b) ESM2_PASTE2(a, b)
#define ESM2_STRING2(a) #a
#define ESM2_STRING(a) ESM2_STRING2(a)

namespace esm2 {
// Every instruction set has its own copy of everything below.
namespace {

// Where one head of one block stands.
struct Head {
  float weight;
  float* sum;          // the block's first row
  float* row_sums;     // of the block's rows
  float* column_sums;  // [n]
  int64_t length;
  bool is_first;  // of the heads: nothing was summed up before
};

// Exponentials of M rows of scores, all keys and zeros up to `padded`; returns what divides each.
template <int M>
void exponentials(const float* q, int64_t q_stride, int64_t dim, const float* keys, int64_t num_keys,
                  int64_t padded, float* scores, float* inverse) {
  Vec highest[M];
  for (int m = 0; m < M; ++m) highest[m] = splat(-std::numeric_limits<float>::infinity());
  const int64_t whole = num_keys / panel_keys * panel_keys;
  for (int64_t j = 0; j < whole; j += panel_keys)
    scores_of<M, 2>(q, q_stride, keys + j * dim, dim, scores + j, padded, highest);
  if (whole < padded) {
    Vec with_padding[M];
    for (int m = 0; m < M; ++m) with_padding[m] = highest[m];
    scores_of<M, 2>(q, q_stride, keys + whole * dim, dim, scores + whole, padded, with_padding);
    for (int m = 0; m < M; ++m) {
      float* row = scores + m * padded;
      std::fill(row + num_keys, row + padded, -std::numeric_limits<float>::infinity());
      for (int64_t j = whole; j < padded; j += width) highest[m] = larger(load(row + j), highest[m]);
    }
  }
  for (int m = 0; m < M; ++m) {
    const Vec top = maximum_of_lanes(highest[m]);
    Vec total{};
    float* row = scores + m * padded;
    for (int64_t j = 0; j < padded; j += width) {
      const Vec p = exp2_of(load(row + j) - top);
      total += p;
      store(row + j, p);
    }
    inverse[m] = 1.0f / sum_of_lanes(total)[0];
  }
}

// One row of attention to residues: `p` times `scale` and, where not all are kept, times `kept`.
inline void add_row(const float* p, float scale, const float* kept, const Head& head, int64_t row) {
  float* sum = head.sum + row * head.length;
  Vec of_row{};
  int64_t j = 0;
  for (; j + width <= head.length; j += width) {
    const Vec a = load(p + j) * splat(scale) * load(kept + j);
    of_row += a;
    store(head.column_sums + j, load(head.column_sums + j) + a);
    const Vec weighted = a * splat(head.weight);
    store(sum + j, head.is_first ? weighted : load(sum + j) + weighted);
  }
  float rest = 0.0f;
  for (; j < head.length; ++j) {
    const float a = p[j] * scale * kept[j];
    rest += a;
    head.column_sums[j] += a;
    sum[j] = head.is_first ? a * head.weight : sum[j] + a * head.weight;
  }
  head.row_sums[row] = sum_of_lanes(of_row)[0] + rest;
}

using Exponentials = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*,
                              float*);
template <int... M>
constexpr auto exponentials_of(std::integer_sequence<int, M...>) {
  return std::array<Exponentials, sizeof...(M)>{exponentials<M + 1>...};
}
constexpr auto tiles = exponentials_of(std::make_integer_sequence<int, rows>{});

template <typename T>
void attend(const Contacts& problem, const Map& map, int64_t block) {
  const int64_t n = map.length, num_keys = n + 2, padded = round_up(num_keys, panel_keys);
  const int64_t dim = problem.head_dim, wide = round_up(dim, width);
  const int64_t begin = block * map.block_rows, count = std::min(map.block_rows, n - begin);
  const int64_t sizes[] = {padded * dim, count * wide, rows * padded, width * dim, n};
  int64_t total = 0;
  for (const int64_t size : sizes) total += round_up(size, 16);
  float *memory = scratch.take(total), *parts[5];
  for (int i = 0; i < 5; memory += round_up(sizes[i++], 16)) parts[i] = memory;
  float *keys = parts[0], *queries = parts[1], *scores = parts[2], *made = parts[3], *kept = parts[4];

  const bool* is_kept = problem.is_kept + map.start + 1;
  for (int64_t j = 0; j < n; ++j) kept[j] = is_kept[j];
  for (int64_t number = 0; number < problem.num_heads; ++number) {
    const auto rows_of = [&](const Strided& x) {
      const T* data = static_cast<const T*>(x.data) + map.start * x.token_stride + number * x.head_stride;
      return Rows<T>{data, x.token_stride, dim, {}};
    };
    const Rows<T> q = rows_of(problem.q), k = rows_of(problem.k);
    for (int64_t j = 0; j < padded; j += width)
      pack_keys(k, j, num_keys - j, made, keys + j / panel_keys * panel_keys * dim + j % panel_keys);
    for (int64_t i = 0; i < count; ++i)
      copy_row(q.row(1 + begin + i, made), dim, problem.softmax_scale * log2_e, queries + i * wide);
    const Head head{problem.weight[number],
                    map.sum + begin * n,
                    map.rows + number * n + begin,
                    map.columns + (block * problem.num_heads + number) * n,
                    n,
                    number == 0};
    std::fill(head.column_sums, head.column_sums + n, 0.0f);
    for (int64_t i = 0; i < count; i += rows) {
      const int64_t here = std::min<int64_t>(rows, count - i);
      float inverse[rows];
      tiles[here - 1](queries + i * wide, wide, dim, keys, num_keys, padded, scores, inverse);
      // The first key is BOS.
      for (int64_t m = 0; m < here; ++m)
        add_row(scores + m * padded + 1, inverse[m] * kept[begin + i + m], kept, head, i + m);
    }
  }
}

void attend_any(const Contacts& problem, const Map& map, int64_t block) {
  switch (problem.dtype) {
    case Dtype::float32: return attend<float>(problem, map, block);
    case Dtype::float16: return attend<Float16>(problem, map, block);
    case Dtype::bfloat16: return attend<BFloat16>(problem, map, block);
  }
}

// Squares of the map whose columns are read as rows.
constexpr int64_t square = 16;

void finish(const Contacts& problem, const Map& map, int64_t block) {
  const int64_t n = map.length, end = std::min((block + 1) * map.block_rows, n);
  for (int64_t i = block * map.block_rows; i < end; i += square)
    for (int64_t j = i; j < n; j += square) {
      const int64_t height = std::min(square, end - i), breadth = std::min(square, n - j);
      float found[square][square] = {}, average[square][square] = {};
      for (int64_t b = 0; b < breadth; ++b)
        for (int64_t a = 0; a < height; ++a) found[a][b] = map.sum[(j + b) * n + i + a];
      for (int64_t head = 0; head < problem.num_heads; ++head) {
        const float* sums = map.rows + head * n;
        float of_columns[square] = {};
        std::copy(sums + j, sums + j + breadth, of_columns);
        for (int64_t a = 0; a < height; ++a) {
          const float factor = map.scale[head] * sums[i + a];
          for (int64_t b = 0; b < square; ++b) average[a][b] += factor * of_columns[b];
        }
      }
      for (int64_t a = 0; a < height; ++a) {
        const int64_t row = i + a, pairs = map.first_pair + row * n - row * (row - 1) / 2 - row;
        for (int64_t column = std::max(row, j); column < j + breadth; ++column)
          problem.out[pairs + column] = problem.logits[pairs + column] + map.sum[row * n + column] +
                                        found[a][column - j] - average[a][column - j];
      }
    }
}

}  // namespace

extern const ContactsKernel ESM2_PASTE(contacts_, ESM2_ISA);
const ContactsKernel ESM2_PASTE(contacts_, ESM2_ISA) = {ESM2_STRING(ESM2_ISA), attend_any, finish};

}  // namespace esm2

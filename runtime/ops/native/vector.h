// Vectors of ESM2_WIDTH floats, in GCC's and Clang's vector extensions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace esm2 {
namespace {

constexpr int64_t width = ESM2_WIDTH;

typedef float Vec __attribute__((vector_size(4 * width)));
typedef int32_t IntVec __attribute__((vector_size(4 * width)));
typedef Vec UnalignedVec __attribute__((aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The first `count` floats of a vector, the others 0.
inline Vec load_some(const float* from, int64_t count) {
  if (count >= width) return load(from);
  alignas(64) float lanes[width] = {};
  std::copy(from, from + count, lanes);
  return load(lanes);
}

// 2^x, x <= 0, to 2e-7: a polynomial on [-0.5, 0.5], times 2 to the rest. Below -126 it stays at 2^-126,
// which no sum of a softmax (at least 1) can see. NaN stays NaN; added to its bits, as to an exponent, the
// rest would make a number of some.
inline Vec exp2_of(Vec x) {
  const Vec least = splat(-126.0f);
  x = x < least ? least : x;
  // 1.5 * 2^23 rounds to a whole number, whose last bits are then an exponent with float32's bias.
  const Vec shift = splat(12582912.0f + 127.0f);
  const Vec shifted = x + shift;
  const Vec r = x - (shifted - shift);
  Vec p = splat(1.326472731e-3f);
  p = p * r + splat(9.671512991e-3f);
  p = p * r + splat(5.550733581e-2f);
  p = p * r + splat(2.4022242427e-1f);
  p = p * r + splat(6.9314700365e-1f);
  p = p * r + splat(1.0f);
  return p * (Vec)((IntVec)shifted << 23);
}

template <size_t... I>
inline Vec shuffled(Vec a, Vec b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, IntVec{I...});
#endif
}
template <size_t Step, size_t... I>
inline Vec neighbours(Vec x, std::index_sequence<I...>) {
  return shuffled(x, x, std::index_sequence<(I ^ Step)...>{});
}
// Every lane becomes the maximum, or the sum, of all.
template <size_t Step = width / 2>
inline Vec maximum_of_lanes(Vec x) {
  if constexpr (Step == 0)
    return x;
  else
    return maximum_of_lanes<Step / 2>(
        larger(x, neighbours<Step>(x, std::make_index_sequence<width>{})));
}
template <size_t Step = width / 2>
inline Vec sum_of_lanes(Vec x) {
  if constexpr (Step == 0)
    return x;
  else
    return sum_of_lanes<Step / 2>(x + neighbours<Step>(x, std::make_index_sequence<width>{}));
}

// Deals the vectors of both halves like cards, one lane from each in turn.
template <size_t First, size_t... I>
inline Vec dealt(Vec a, Vec b, std::index_sequence<I...>) {
  return shuffled(a, b, std::index_sequence<(First + I / 2 + (I % 2 ? width : 0))...>{});
}

// Transposes a square of vectors: log2(width) deals.
inline void transpose(Vec (&x)[width]) {
  const auto lanes = std::make_index_sequence<width>{};
  for (int64_t step = 1; step < width; step *= 2) {
    Vec next[width];
    for (int64_t i = 0; i < width / 2; ++i) {
      next[2 * i] = dealt<0>(x[i], x[i + width / 2], lanes);
      next[2 * i + 1] = dealt<width / 2>(x[i], x[i + width / 2], lanes);
    }
    std::copy(next, next + width, x);
  }
}

}  // namespace
}  // namespace esm2

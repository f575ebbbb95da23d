// Packs that are drawn from a seed, in memory that notices who leaves it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "number.h"
#include "varlen_attention.h"

// What must hold, or the program says what does not and ends.
#define DEMAND(condition, ...)         \
  do {                                 \
    if (!(condition)) {                \
      std::printf("FAILED: " __VA_ARGS__); \
      std::printf("\n");               \
      std::fflush(stdout);             \
      std::_Exit(1);                   \
    }                                  \
  } while (0)

// What float32 may lose in the sums of a softmax; and in a score, for each unit of its terms and of the square
// root of their count, as errors of either sign add up. 40 % of it was the worst in 14,000 packs.
constexpr double sum_error = 24 * 0x1p-24, score_error = 2 * 0x1p-24;

// splitmix64: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
  }
  int64_t between(int64_t low, int64_t high) { return low + int64_t(bits() % uint64_t(high - low + 1)); }
  int64_t log_uniform(int64_t low, int64_t high) {
    const double share = double(bits() >> 11) * 0x1p-53;
    return std::min(high, int64_t(double(low) * std::pow((high + 1.0) / low, share)));
  }
  template <typename T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[bits() % choices.size()];
  }
  // Nearly normal, of variance 1: a sum of four.
  float normal() {
    const uint64_t x = bits();
    const auto sum = int64_t((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
    return float(sum - 131070) * (1.7320508f / 65536);
  }

 private:
  uint64_t state_;
};

// Bytes that end where memory ends: who reads or writes beyond them crashes. Until they are written they
// are NaN in every dtype, and so are the bytes before them, which must stay.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : page_(sysconf(_SC_PAGESIZE)) {
    whole_ = (bytes + 64 + page_ - 1) / page_ * page_;
    void* mapped = mmap(nullptr, whole_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    DEMAND(mapped != MAP_FAILED, "no memory for %zu bytes", bytes);
    first_ = static_cast<uint8_t*>(mapped);
    std::memset(first_, 0xff, whole_);
    mprotect(first_ + whole_, page_, PROT_NONE);
    data = first_ + whole_ - bytes;
  }
  Guarded(Guarded&& from)
      : data(from.data), page_(from.page_), whole_(from.whole_), first_(std::exchange(from.first_, nullptr)) {}
  ~Guarded() {
    if (first_) munmap(first_, whole_ + page_);
  }
  // Who writes then crashes too.
  void make_read_only(bool read_only) {
    mprotect(first_, whole_, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
  }
  bool is_untouched_before() const {
    return std::all_of(first_, data, [](uint8_t byte) { return byte == 0xff; });
  }
  bool operator==(const Guarded& other) const {
    return std::equal(data, first_ + whole_, other.data, other.first_ + other.whole_);
  }

  uint8_t* data;

 private:
  size_t page_, whole_;
  uint8_t* first_;
};

inline int64_t size_of(esm2::Dtype dtype) { return dtype == esm2::Dtype::float32 ? 4 : 2; }

inline double number(esm2::Dtype dtype, const void* data, int64_t i) {
  switch (dtype) {
    case esm2::Dtype::float32: return static_cast<const float*>(data)[i];
    case esm2::Dtype::float16: return esm2::to_float(static_cast<const esm2::Float16*>(data)[i]);
    case esm2::Dtype::bfloat16: return esm2::to_float(static_cast<const esm2::BFloat16*>(data)[i]);
  }
  return NAN;
}

inline void set_number(esm2::Dtype dtype, const void* data, int64_t i, float x) {
  void* to = const_cast<void*>(data);
  switch (dtype) {
    case esm2::Dtype::float32: return esm2::from_float(x, static_cast<float*>(to)[i]);
    case esm2::Dtype::float16: return esm2::from_float(x, static_cast<esm2::Float16*>(to)[i]);
    case esm2::Dtype::bfloat16: return esm2::from_float(x, static_cast<esm2::BFloat16*>(to)[i]);
  }
}

inline int64_t index_of(const esm2::Strided& x, int64_t token, int64_t head, int64_t d) {
  return token * x.token_stride + head * x.head_stride + d;
}

struct Pack {
  esm2::Problem problem{};  // without its output
  std::vector<int32_t> lengths;
  int64_t tokens = 0, threads = 1;
  std::vector<Guarded> inputs;  // q, k and v, or one of all three; cu_seqlens; cos and sin

  // Says on standard error what it has drawn.
  Pack(Random& random, esm2::Dtype dtype, std::vector<int32_t> of_lengths, int64_t heads, int64_t dim)
      : lengths(std::move(of_lengths)) {
    problem.dtype = dtype;
    problem.num_heads = heads;
    problem.head_dim = dim;
    problem.num_proteins = int64_t(lengths.size());
    problem.softmax_scale = random.one_of({1 / std::sqrt(float(dim)), 0.05f, 1.0f});
    tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    threads = random.one_of({2, 3, 8, 16});
    // 30 makes scores of thousands: one key takes all.
    const float amplitude = random.one_of({1.0f, 1.0f, 1.0f, 30.0f});
    const bool is_like_key = random.one_of({true, true, false});
    const bool rotary = dim % 2 == 0 && random.one_of({false, true});
    const char* layout = place_inputs(random);
    std::fprintf(stderr, "%d bytes, head dim %d, %d heads, %s, rotary %d, %d threads, x %g, scale %g, lengths",
                 int(size_of(problem.dtype)), int(dim), int(heads), layout, rotary, int(threads), amplitude,
                 problem.softmax_scale);
    for (const int32_t length : lengths) std::fprintf(stderr, " %d", length);
    std::fprintf(stderr, "\n");

    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < dim; ++d) {
          const float key = random.normal();
          set(problem.q, t, h, d, random.normal() * amplitude);
          set(problem.k, t, h, d, key * amplitude);
          // Values like their keys: else errors of the scores would average out in long proteins.
          set(problem.v, t, h, d, is_like_key ? key : random.normal());
        }
    auto* bounds = new_input<int32_t>(problem.num_proteins + 1);
    bounds[0] = 0;
    std::partial_sum(lengths.begin(), lengths.end(), bounds + 1);
    problem.cu_seqlens = bounds;
    if (rotary) problem.rotary = {new_table(random), new_table(random)};
    make_read_only(true);
  }

  void make_read_only(bool read_only) {
    for (Guarded& input : inputs) input.make_read_only(read_only);
  }

  int64_t num_outputs() const { return tokens * problem.num_heads * problem.head_dim; }
  Guarded new_output() const { return Guarded(num_outputs() * size_of(problem.dtype)); }

 private:
  void set(const esm2::Strided& x, int64_t token, int64_t head, int64_t d, float value) {
    set_number(problem.dtype, x.data, index_of(x, token, head, d), value);
  }

  template <typename T>
  T* new_input(int64_t count) {
    inputs.emplace_back(count * sizeof(T));
    return reinterpret_cast<T*>(inputs.back().data);
  }

  const float* new_table(Random& random) {
    auto* table = new_input<float>(tokens * problem.head_dim);
    for (int64_t i = 0; i < tokens * problem.head_dim; ++i) table[i] = 0.5f + 0.5f * random.normal();
    return table;
  }

  // Returns how they lie.
  const char* place_inputs(Random& random) {
    const int64_t heads = problem.num_heads, dim = problem.head_dim, size = size_of(problem.dtype);
    int64_t token_stride = heads * dim, head_stride = dim, to_next = 0;
    const char* name = "[T, H, D]";
    switch (random.between(0, 4)) {
      case 1:
        name = "NaN between rows";
        head_stride = dim + 3, token_stride = heads * head_stride + 5;
        break;
      case 2:
        name = "[H, T, D]";
        head_stride = tokens * dim, token_stride = dim;
        break;
      case 3:
        name = "[T, 3, H, D]";
        to_next = token_stride, token_stride *= 3;
        break;
      case 4:
        name = "[T, H, 3, D]";
        to_next = dim, head_stride *= 3, token_stride *= 3;
        break;
    }
    const int64_t count = (tokens - 1) * token_stride + (heads - 1) * head_stride + 2 * to_next + dim;
    int64_t from = 0;
    for (esm2::Strided* x : {&problem.q, &problem.k, &problem.v}) {
      if (inputs.empty() || !to_next) inputs.emplace_back(count * size);
      *x = {inputs.back().data + from * size, token_stride, head_stride};
      from += to_next;
    }
    return name;
  }
};

// A host whose threads all begin at the same moment.
inline void on_threads(void*, int64_t slots, void (*body)(void*, int64_t), void* context) {
  std::atomic<int64_t> absent{slots};
  std::vector<std::thread> threads;
  for (int64_t slot = 0; slot < slots; ++slot)
    threads.emplace_back([&absent, slot, body, context] {
      --absent;
      while (absent) std::this_thread::yield();
      body(context, slot);
    });
  for (std::thread& thread : threads) thread.join();
}

// Next to where a loop ends: rows of a tile, vectors, panels, sums, blocks of keys and tasks; or anywhere.
inline int32_t draw_length(Random& random, int64_t most) {
  if (random.one_of({false, true})) return int32_t(random.log_uniform(1, most));
  const int size = random.one_of({4, 6, 8, 12, 16, 32, 48, 128, 512, 1024});
  return int32_t(std::clamp<int64_t>(random.between(1, 4) * size + random.between(-1, 1), 1, most));
}

inline int64_t draw_head_dim(Random& random) {
  if (random.one_of({false, true})) return random.between(16, 128);
  return random.one_of({16, 20, 24, 32, 40, 64, 72, 128});
}

// contacts_property.cpp
void check_contacts(uint64_t seed, int count);

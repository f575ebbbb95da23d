// Properties of the native kernels, on packs drawn from a seed:
//
//   property PACKS LONG_PACKS SEED
//
// tests/native/check.py links it with one kernel, whatever the processor would choose. What holds is said on
// standard output; each pack on standard error before it runs, so the last is the one that failed.

#include "pack.h"

namespace esm2 {
extern const Kernel kernel_tested;
static const Kernel* in_use = &kernel_tested;
const Kernel& kernel() { return *in_use; }
}  // namespace esm2

namespace {

using namespace esm2;

constexpr int32_t longest = 40'000;
// Queries x keys x heads x head dim of a pack that float64 computes; of a larger one some queries.
constexpr int64_t computed_in_float64 = 1'000'000;

Guarded attention_of(const Pack& pack, int64_t threads) {
  Guarded out = pack.new_output();
  Problem problem = pack.problem;
  problem.out = out.data;
  varlen_attention(problem, threads, on_threads, nullptr);
  DEMAND(out.is_untouched_before(), "bytes before the output were written");
  return out;
}

// One protein in one head, in float64.
class Truth {
 public:
  Truth(const Pack& pack, int64_t protein, int64_t head)
      : pack_(pack), head_(head), start_(pack.problem.cu_seqlens[protein]), length_(pack.lengths[protein]) {
    for (int64_t j = 0; j < length_; ++j) {
      append_row(keys_, pack.problem.k, start_ + j, pack.problem.rotary);
      append_row(values_, pack.problem.v, start_ + j, {});
    }
  }

  // Each number of a query is float64's but for rounding. Returns the worst share of the error allowed.
  double demand(int64_t query, const Guarded& out) const {
    const int64_t dim = pack_.problem.head_dim, token = start_ + query;
    const Dtype dtype = pack_.problem.dtype;
    std::vector<double> q, weights(length_), sums(dim), magnitudes(dim);
    append_row(q, pack_.problem.q, token, pack_.problem.rotary);
    double highest = -INFINITY, terms = 0, total = 0, worst = 0;
    for (int64_t j = 0; j < length_; ++j) {
      double score = 0, magnitude = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double product = q[d] * keys_[j * dim + d];
        score += product, magnitude += std::abs(product);
      }
      weights[j] = score * pack_.problem.softmax_scale;
      highest = std::max(highest, weights[j]);
      terms = std::max(terms, magnitude * pack_.problem.softmax_scale);
    }
    for (double& weight : weights) total += weight = std::exp(weight - highest);
    for (int64_t j = 0; j < length_; ++j)
      for (int64_t d = 0; d < dim; ++d) {
        const double part = weights[j] / total * values_[j * dim + d];
        sums[d] += part, magnitudes[d] += std::abs(part);
      }
    for (int64_t d = 0; d < dim; ++d) {
      const double got = number(dtype, out.data, (token * pack_.problem.num_heads + head_) * dim + d);
      const double rounding = dtype == Dtype::float32   ? 0
                              : dtype == Dtype::float16 ? std::max(0x1p-11 * std::abs(sums[d]), 0x1p-25)
                                                        : 0x1p-8 * std::abs(sums[d]);
      const double in_float32 = sum_error + score_error * std::sqrt(dim) * terms;
      // A weight below 2^-126 counts as that.
      const double allowed = in_float32 * magnitudes[d] + rounding + 1e-30;
      const double share = std::abs(got - sums[d]) / allowed;
      DEMAND(share <= 1, "token %d, head %d, number %d is %.9g, in float64 %.9g: %.3g times the error allowed",
             int(token), int(head_), int(d), got, sums[d], share);
      worst = std::max(worst, share);
    }
    return worst;
  }

 private:
  void append_row(std::vector<double>& to, const Strided& x, int64_t token, const Rotary& rotary) const {
    const int64_t dim = pack_.problem.head_dim, half = dim / 2;
    const auto at = [&](int64_t d) {
      return number(pack_.problem.dtype, x.data, index_of(x, token, head_, d));
    };
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t i = token * dim + d, swapped = d < half ? d + half : d - half;
      to.push_back(rotary.cos ? at(d) * rotary.cos[i] + at(swapped) * rotary.sin[i] : at(d));
    }
  }

  const Pack& pack_;
  int64_t head_, start_, length_;
  std::vector<double> keys_, values_;
};

double demand_float64(const Pack& pack, const Guarded& out, Random& random) {
  const int64_t heads = pack.problem.num_heads;
  for (int64_t i = 0; i < pack.num_outputs(); ++i)
    DEMAND(std::isfinite(number(pack.problem.dtype, out.data, i)), "number %d was not written", int(i));
  const int64_t some = computed_in_float64 / pack.num_outputs();
  double worst = 0;
  for (int64_t protein = 0; protein < pack.problem.num_proteins; ++protein)
    for (int64_t head = 0; head < heads; ++head) {
      const Truth truth(pack, protein, head);
      const int64_t last = pack.lengths[protein] - 1;
      std::vector<int64_t> queries{0, last};
      for (int64_t i = 0; i < some; ++i) queries.push_back(last < some ? i : random.between(0, last));
      for (const int64_t query : queries) worst = std::max(worst, truth.demand(std::min(query, last), out));
    }
  return worst;
}

// Two callers at once, with threads of their own, get the bits that one thread gets.
void demand_same_bits(const Pack& pack, const Guarded& out) {
  const auto call = [&] {
    DEMAND(attention_of(pack, pack.threads) == out, "%d threads give other bits than one", int(pack.threads));
  };
  std::thread beside(call);
  call();
  beside.join();
}

// NaN or infinity in one number shows where it is read, and changes nothing elsewhere.
void demand_that_nan_shows(Pack& pack, const Guarded& out, Random& random) {
  const Problem& problem = pack.problem;
  const Strided& x = *random.one_of({&problem.q, &problem.k, &problem.v});
  // NaN has many patterns.
  const float bad = random.one_of({NAN, float_of_bits(0xffffffff), float_of_bits(0x7fc01234), INFINITY});
  const int64_t protein = random.between(0, problem.num_proteins - 1), dim = problem.head_dim;
  const int64_t start = problem.cu_seqlens[protein], end = problem.cu_seqlens[protein + 1];
  const int64_t token = random.one_of({start, end - 1, random.between(start, end - 1)});
  const int64_t head = random.between(0, problem.num_heads - 1);
  const int64_t place = random.between(0, dim - 1), i = index_of(x, token, head, place);
  const auto before = float(number(problem.dtype, x.data, i));
  pack.make_read_only(false);
  set_number(problem.dtype, x.data, i, bad);
  const Guarded other = attention_of(pack, pack.threads);
  set_number(problem.dtype, x.data, i, before);
  pack.make_read_only(true);

  // An infinite key may be one that no query of the same sign meets.
  const bool must_show = std::isnan(bad) || &x != &problem.k;
  for (int64_t n = 0; n < pack.num_outputs(); ++n) {
    const int64_t d = n % dim, h = n / dim % problem.num_heads, t = n / dim / problem.num_heads;
    const bool reads = h == head && (&x == &problem.q ? t == token : t >= start && t < end) &&
                       (&x != &problem.v || d == place);
    const double now = number(problem.dtype, other.data, n);
    if (!reads)
      DEMAND(now == number(problem.dtype, out.data, n), "%g at token %d, head %d changed token %d, head %d", bad,
             int(token), int(head), int(t), int(h));
    else if (must_show)
      DEMAND(!std::isfinite(now), "%g (bits %x) at token %d does not show at token %d: %g", bad,
             bits_of_float(bad), int(token), int(t), now);
  }
}

// Of at most `work` products of queries, keys, heads and head dim.
Pack draw_pack(Random& random, Dtype dtype, int64_t work) {
  const int64_t dim = draw_head_dim(random), heads = random.one_of({1, 2, 3, 5, 20});
  const int64_t most_proteins = random.one_of({1, 5, 300});
  std::vector<int32_t> lengths;
  for (double left = double(work) / double(heads * dim); int64_t(lengths.size()) < most_proteins;) {
    const double most = std::min<double>(longest, std::sqrt(left));
    if (most < 1) break;
    lengths.push_back(draw_length(random, int64_t(most)));
    left -= double(lengths.back()) * lengths.back();
  }
  return Pack(random, dtype, lengths, heads, dim);
}

void check_packs(uint64_t seed, int count, int times_first, const std::vector<int32_t>& first,
                 int64_t least_work, int64_t most_work) {
  double worst[3] = {};
  int32_t length = 0;
  for (int i = 0; i < count; ++i) {
    std::fprintf(stderr, "pack: seed %llu, ", static_cast<unsigned long long>(seed + i));
    Random random(seed + i);
    const auto dtype = Dtype(i % 4 % 3);  // each of the first three packs has another
    Pack pack = i < times_first ? Pack(random, dtype, first, 1, 16 + 4 * i)
                                : draw_pack(random, dtype, random.log_uniform(least_work, most_work));
    const Guarded out = attention_of(pack, 1);
    double& of_dtype = worst[int(pack.problem.dtype)];
    of_dtype = std::max(of_dtype, demand_float64(pack, out, random));
    demand_same_bits(pack, out);
    for (int times = 0; times < 2; ++times) demand_that_nan_shows(pack, out, random);
    length = std::max(length, *std::max_element(pack.lengths.begin(), pack.lengths.end()));
  }
  std::printf("%d packs, lengths to %d: float64's answers (worst share of the error allowed: float32 %.0f %%,\n"
              "  float16 %.0f %%, bfloat16 %.0f %%), the same bits on 2 to 16 threads, NaN stays in its head\n",
              count, length, 100 * worst[0], 100 * worst[1], 100 * worst[2]);
}

// A task writes its queries in its heads, and nothing else; also far inside a long protein.
void check_tasks_of_long_proteins(uint64_t seed, int count) {
  double worst = 0;
  for (int i = 0; i < count; ++i) {
    std::fprintf(stderr, "pack: seed %llu, ", static_cast<unsigned long long>(seed + i));
    Random random(seed + i);
    const int32_t length = i ? draw_length(random, longest) : longest, before = draw_length(random, 100);
    const int32_t middle = int32_t(random.between(0, length - 1)), few = int32_t(random.between(1, 25));
    const Pack pack(random, Dtype(i % 3), {before, length, 3}, 2, i ? draw_head_dim(random) : 24);
    const Guarded out = pack.new_output();
    Problem problem = pack.problem;
    problem.out = out.data;
    const Task tasks[] = {{1, 0, 1, 0, std::min(few, length)},
                          {1, 1, 2, std::max(0, length - few), length},
                          {1, 0, 2, middle, std::min(middle + few, length)}};
    std::vector<bool> written(pack.num_outputs());
    const Truth truths[] = {{pack, 1, 0}, {pack, 1, 1}};
    for (const Task& task : tasks) {
      kernel_tested.run(problem, task);
      for (int64_t head = task.first_head; head < task.last_head; ++head)
        for (int64_t query = task.begin; query < task.end; ++query) {
          worst = std::max(worst, truths[head].demand(query, out));
          const auto first = written.begin() + ((before + query) * 2 + head) * problem.head_dim;
          std::fill(first, first + problem.head_dim, true);
        }
    }
    for (int64_t n = 0; n < pack.num_outputs(); ++n)
      DEMAND(written[n] || std::isnan(number(problem.dtype, out.data, n)), "number %d is of no task", int(n));
  }
  std::printf("%d proteins, lengths to %d: tasks of few queries write float64's answers (worst share %.0f %%),\n"
              "  and nothing else\n", count, longest, 100 * worst);
}

// Counts in place of computing.
std::vector<std::atomic<uint8_t>> counts;
void count_queries(const Problem& problem, const Task& task) {
  for (int64_t i = task.begin; i < task.end; ++i)
    for (int64_t head = task.first_head; head < task.last_head; ++head)
      ++counts[(problem.cu_seqlens[task.protein] + i) * problem.num_heads + head];
}

void check_splitting(uint64_t seed, int count) {
  const Kernel counting{"counting", count_queries};
  in_use = &counting;
  for (int i = 0; i < count; ++i) {
    Random random(seed + i);
    std::vector<int32_t> bounds{0};
    for (int64_t n = random.log_uniform(1, 200); n > 0 && bounds.back() < longest; --n)
      bounds.push_back(bounds.back() + draw_length(random, longest));
    Problem problem{};
    problem.cu_seqlens = bounds.data();
    problem.num_proteins = int64_t(bounds.size()) - 1;
    problem.num_heads = random.between(1, 40);
    counts = std::vector<std::atomic<uint8_t>>(bounds.back() * problem.num_heads);
    varlen_attention(problem, random.log_uniform(1, 64), on_threads, nullptr);
    for (const auto& times : counts)
      DEMAND(times == 1, "a query of a head is in %d tasks (seed %d)", int(times), int(seed) + i);
  }
  in_use = &kernel_tested;
  std::printf("%d packs on 1 to 64 threads: each query of each head is in one task\n", count);
}

// By the definition of IEEE 754.
double decoded(int bits, int exponent_bits) {
  const int digits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> digits, fraction = bits & ((1 << digits) - 1);
  const int significand = exponent ? fraction + (1 << digits) : fraction;
  double magnitude = std::ldexp(significand, std::max(exponent, 1) - bias - digits);
  if (exponent == (1 << exponent_bits) - 1) magnitude = fraction ? NAN : INFINITY;
  return bits >> 15 ? -magnitude : magnitude;
}

template <typename T>
void check_conversions(const char* name, int exponent_bits) {
  const auto encoded = [](double x) {
    T out;
    from_float(float(x), out);
    return int(out.bits);
  };
  for (int bits = 0; bits < 0x10000; ++bits) {
    const double truth = decoded(bits, exponent_bits), got = to_float(T{uint16_t(bits)});
    if (std::isnan(truth)) {
      DEMAND(std::isnan(got) && std::isnan(decoded(encoded(got), exponent_bits)), "%s %x is no NaN", name,
             bits);
      continue;
    }
    DEMAND(got == truth && encoded(got) == bits, "%s %x is read as %g", name, bits, got);
    if (std::isinf(truth)) continue;
    // Away from zero; beyond the largest comes infinity, where the next number would be.
    const double beyond = decoded(bits + 1, exponent_bits);
    const double next = std::isinf(beyond) ? 2 * truth - decoded(bits - 1, exponent_bits) : beyond;
    const auto halfway = float((truth + next) / 2);
    DEMAND(encoded(halfway) == bits + (bits & 1), "%s: what lies halfway after %x is not rounded to even", name,
           bits);
    DEMAND(encoded(std::nextafter(halfway, float(truth))) == bits &&
               encoded(std::nextafter(halfway, float(next))) == bits + 1,
           "%s: a number next to halfway after %x is not rounded to the nearest", name, bits);
  }
  std::printf("%s: all 65,536 convert, to nearest and to even\n", name);
}

}  // namespace

int main(int argc, char** argv) {
  DEMAND(argc == 4, "usage: property PACKS LONG_PACKS SEED");
  const int packs = std::atoi(argv[1]), long_packs = std::atoi(argv[2]);
  const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
  std::printf("seed %s\n", argv[3]);
  check_conversions<Float16>("float16", 5);
  check_conversions<BFloat16>("bfloat16", 8);
  check_splitting(seed, 30 + packs / 2);
  check_packs(seed, packs, 3, {513, 1, 1025}, 100'000, 100'000'000);
  check_tasks_of_long_proteins(seed, 1 + packs / 20);
  check_contacts(seed, 5 + packs / 6);
  if (long_packs) check_packs(seed, long_packs, 1, {longest}, 1'000'000'000, 30'000'000'000);
}

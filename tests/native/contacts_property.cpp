// Properties of the native kernel of contacts, on packs drawn from a seed; see property.cpp.

#include "contacts.h"

#include "pack.h"

namespace esm2 {
extern const ContactsKernel contacts_tested;
const ContactsKernel& contacts_kernel() { return contacts_tested; }
}  // namespace esm2

namespace {

using namespace esm2;

// A pack's queries and keys, and what contacts need besides.
struct ContactsPack {
  Pack pack;
  Contacts problem{};
  int64_t pairs;
  Guarded is_kept, weight, logits;

  ContactsPack(Random& random, Pack drawn)
      : pack(std::move(drawn)),
        pairs(num_pairs(pack.problem.cu_seqlens, pack.problem.num_proteins)),
        is_kept(pack.tokens),
        weight(pack.problem.num_heads * sizeof(float)),
        logits(pairs * sizeof(float)) {
    const Problem& from = pack.problem;
    const int64_t one_is_left_out_in = random.one_of({1'000'000, 50, 4});
    for (int64_t t = 0; t < pack.tokens; ++t) is_kept.data[t] = random.between(1, one_is_left_out_in) > 1;
    for (int64_t h = 0; h < from.num_heads; ++h) numbers(weight)[h] = random.normal();
    for (int64_t p = 0; p < pairs; ++p) numbers(logits)[p] = random.normal();
    for (Guarded* input : {&is_kept, &weight, &logits}) input->make_read_only(true);
    problem = {from.dtype, from.q, from.k, from.cu_seqlens, from.num_proteins, from.num_heads,
               from.head_dim, from.softmax_scale, reinterpret_cast<const bool*>(is_kept.data),
               numbers(weight), numbers(logits), nullptr};
  }

  static float* numbers(const Guarded& memory) { return reinterpret_cast<float*>(memory.data); }
  int64_t residues(int64_t protein) const { return std::max(0, pack.lengths[protein] - 2); }

  Guarded contacts(int64_t threads) const {
    Guarded out(pairs * sizeof(float));
    Contacts with_output = problem;
    with_output.out = numbers(out);
    esm2::contacts(with_output, threads, on_threads, nullptr);
    DEMAND(out.is_untouched_before(), "bytes before the contacts were written");
    return out;
  }
};

// One head's map of one protein in float64, and the largest share of a number of it that float32 may lose.
struct TrueMap {
  std::vector<double> attention, sums;  // [n, n]; [n], rows and columns
  double total = 0, error = 0;

  TrueMap(const ContactsPack& given, int64_t protein, int64_t head) {
    const Contacts& problem = given.problem;
    const int64_t n = given.residues(protein), dim = problem.head_dim, start = problem.cu_seqlens[protein];
    std::vector<double> q((n + 2) * dim), k((n + 2) * dim), weights(n + 2);
    for (int64_t i = 0; i < n + 2; ++i)
      for (int64_t d = 0; d < dim; ++d) {
        q[i * dim + d] = number(problem.dtype, problem.q.data, index_of(problem.q, start + i, head, d));
        k[i * dim + d] = number(problem.dtype, problem.k.data, index_of(problem.k, start + i, head, d));
      }
    attention.resize(n * n), sums.resize(n);
    double terms = 0;
    for (int64_t i = 0; i < n; ++i) {
      double highest = -INFINITY, divisor = 0;
      for (int64_t j = 0; j < n + 2; ++j) {
        double score = 0, magnitude = 0;
        for (int64_t d = 0; d < dim; ++d) {
          const double product = q[(i + 1) * dim + d] * k[j * dim + d];
          score += product, magnitude += std::abs(product);
        }
        weights[j] = score * problem.softmax_scale;
        terms = std::max(terms, magnitude * problem.softmax_scale);
        highest = std::max(highest, weights[j]);
      }
      // As in the kernel, a weight below 2^-126 counts as that.
      for (double& weight : weights) divisor += weight = std::max(0x1p-126, std::exp(weight - highest));
      for (int64_t j = 0; j < n; ++j) {
        const bool both = problem.is_kept[start + 1 + i] && problem.is_kept[start + 1 + j];
        const double a = both ? weights[j + 1] / divisor : 0;
        attention[i * n + j] = a;
        sums[i] += a, sums[j] += a, total += 2 * a;
      }
    }
    error = sum_error + score_error * std::sqrt(dim) * terms + 0x1p-23 * std::sqrt(n);
  }
};

// Each contact is float64's but for rounding. Returns the worst share of the error allowed.
double demand_float64(const ContactsPack& given, const Guarded& out) {
  double worst = 0;
  int64_t pair = 0;
  for (int64_t protein = 0; protein < given.problem.num_proteins; ++protein) {
    const int64_t n = given.residues(protein);
    std::vector<double> truth(n * n), allowed(n * n);
    bool is_defined = true;
    for (int64_t head = 0; n > 0 && head < given.problem.num_heads; ++head) {
      const TrueMap map(given, protein, head);
      const double weight = given.problem.weight[head];
      // fair-esm divides 0 by 0, where no residue attends to any.
      is_defined &= map.total > 1e-30;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) {
          const double both = map.attention[i * n + j] + map.attention[j * n + i];
          const double average = map.sums[i] * map.sums[j] / map.total;
          truth[i * n + j] += weight * (both - average);
          // Three of an average's factors are off; and each addition of a head rounds.
          const double heads = 0x1p-23 * std::sqrt(double(given.problem.num_heads));
          allowed[i * n + j] += std::abs(weight) * ((map.error + heads) * both + (3 * map.error + heads) * average);
        }
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j, ++pair) {
        if (!is_defined) continue;
        const double logit = given.problem.logits[pair], expected = logit + truth[i * n + j];
        const double got = ContactsPack::numbers(out)[pair];
        const double bound = allowed[i * n + j] + 0x1p-23 * (std::abs(logit) + std::abs(expected)) + 1e-30;
        const double share = std::abs(got - expected) / bound;
        DEMAND(share <= 1, "protein %d, residues %d and %d: contact %.9g, in float64 %.9g: %.3g times the error allowed",
               int(protein), int(i), int(j), got, expected, share);
        worst = std::max(worst, share);
      }
  }
  DEMAND(pair == given.pairs, "%d pairs, not %d", int(pair), int(given.pairs));
  return worst;
}

// Two callers at once, with threads of their own, get the bits that one thread gets.
void demand_same_bits(const ContactsPack& given, const Guarded& out) {
  const auto call = [&] {
    DEMAND(given.contacts(given.pack.threads) == out, "contacts: %d threads give other bits than one",
           int(given.pack.threads));
  };
  std::thread beside(call);
  call();
  beside.join();
}

// NaN in a residue's query, or in any key, shows in all pairs of its protein, and changes no other's.
void demand_that_nan_shows(ContactsPack& given, const Guarded& out, Random& random) {
  const Contacts& problem = given.problem;
  const int64_t bad = random.between(0, problem.num_proteins - 1), length = given.pack.lengths[bad];
  const bool is_key = random.one_of({false, true});
  const Strided& x = is_key ? problem.k : problem.q;
  const int64_t token = random.between(0, length - 1);
  const int64_t i = index_of(x, problem.cu_seqlens[bad] + token, random.between(0, problem.num_heads - 1),
                             random.between(0, problem.head_dim - 1));
  const bool is_read = is_key || (token > 0 && token < length - 1);
  const auto before = float(number(problem.dtype, x.data, i));
  given.pack.make_read_only(false);
  set_number(problem.dtype, x.data, i, NAN);
  const Guarded other = given.contacts(given.pack.threads);
  set_number(problem.dtype, x.data, i, before);
  given.pack.make_read_only(true);
  int64_t pair = 0;
  for (int64_t protein = 0; protein < problem.num_proteins; ++protein)
    for (int64_t n = given.residues(protein), last = pair + n * (n + 1) / 2; pair < last; ++pair) {
      const float now = ContactsPack::numbers(other)[pair], then = ContactsPack::numbers(out)[pair];
      if (protein == bad && is_read)
        DEMAND(std::isnan(now), "NaN in protein %d does not show in its pair %d: %g", int(bad), int(pair), now);
      else
        DEMAND(bits_of_float(now) == bits_of_float(then), "NaN in protein %d changed protein %d", int(bad),
               int(protein));
    }
}

// The first has more rows than a map has blocks of 64; of the others float64 computes all.
Pack draw_contacts_pack(Random& random, int number) {
  const auto dtype = Dtype(number % 3);
  if (!number) return Pack(random, dtype, {2, 2113, 1, 65, 3}, 1, 16);
  const int64_t heads = random.one_of({1, 2, 3, 20}), dim = draw_head_dim(random);
  std::vector<int32_t> lengths;
  double left = 20e6 / double(heads * dim);
  for (const int64_t most = random.one_of({1, 5, 50}); int64_t(lengths.size()) < most && left >= 1;) {
    lengths.push_back(draw_length(random, int64_t(std::sqrt(left))));
    left -= double(lengths.back()) * lengths.back();
  }
  return Pack(random, dtype, lengths, heads, dim);
}

}  // namespace

void check_contacts(uint64_t seed, int count) {
  double worst[3] = {};
  int32_t length = 0;
  for (int i = 0; i < count; ++i) {
    std::fprintf(stderr, "pack: contacts, seed %llu, ", static_cast<unsigned long long>(seed + i));
    Random random(seed + i);
    ContactsPack given(random, draw_contacts_pack(random, i));
    const Guarded out = given.contacts(1);
    double& of_dtype = worst[int(given.problem.dtype)];
    of_dtype = std::max(of_dtype, demand_float64(given, out));
    demand_same_bits(given, out);
    demand_that_nan_shows(given, out, random);
    length = std::max(length, *std::max_element(given.pack.lengths.begin(), given.pack.lengths.end()));
  }
  std::printf("contacts: %d packs, lengths to %d: float64's answers (worst share of the error allowed: float32\n"
              "  %.0f %%, float16 %.0f %%, bfloat16 %.0f %%), the same bits on threads, NaN stays in its protein\n",
              count, length, 100 * worst[0], 100 * worst[1], 100 * worst[2]);
}

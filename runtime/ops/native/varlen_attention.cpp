// Splits a pack into tasks.

#include "varlen_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace esm2 {

const char* problem_with(const int32_t* cu_seqlens, int64_t num_bounds, int64_t num_tokens) {
  if (num_bounds < 2) return "cu_seqlens must be [N + 1] with N >= 1";
  if (cu_seqlens[0] != 0) return "cu_seqlens must start at 0";
  if (cu_seqlens[num_bounds - 1] != num_tokens) return "cu_seqlens must end at T";
  for (int64_t i = 1; i < num_bounds; ++i)
    if (cu_seqlens[i] <= cu_seqlens[i - 1]) return "cu_seqlens must be strictly increasing";
  return nullptr;
}

namespace {

// Keys are packed anew for every task, which this many queries pay for.
constexpr int64_t queries_per_task = 1024;
constexpr int64_t least_queries_per_task = 48;
constexpr int64_t tasks_per_thread = 8;

// Longest proteins first, so that the threads end together. A task is all heads of a protein where
// there are enough proteins for the threads, else some of the heads, else some of the queries too.
std::vector<Task> tasks_of(const Problem& problem, int64_t threads) {
  const int32_t* bounds = problem.cu_seqlens;
  const auto length_of = [&](int32_t protein) { return bounds[protein + 1] - bounds[protein]; };
  std::vector<int32_t> proteins(problem.num_proteins);
  std::iota(proteins.begin(), proteins.end(), 0);
  std::stable_sort(proteins.begin(), proteins.end(),
                   [&](int32_t a, int32_t b) { return length_of(a) > length_of(b); });
  double squares = 0;
  for (const int32_t protein : proteins) squares += double(length_of(protein)) * length_of(protein);
  const double share = threads > 1 ? squares / (tasks_per_thread * threads) : squares;

  std::vector<Task> tasks;
  for (const int32_t protein : proteins) {
    const int64_t length = length_of(protein);
    const int64_t pieces = std::ceil(double(length) * length / share);
    const int32_t heads = std::max<int64_t>(1, problem.num_heads / pieces);
    const int64_t of_queries = std::max<int64_t>(1, pieces / problem.num_heads);
    const int64_t step = std::clamp((length + of_queries - 1) / of_queries, least_queries_per_task,
                                    queries_per_task);
    for (int32_t head = 0; head < problem.num_heads; head += heads)
      for (int64_t begin = 0; begin < length; begin += step)
        tasks.push_back({protein, head, std::min<int32_t>(head + heads, problem.num_heads), begin,
                         std::min(begin + step, length)});
  }
  return tasks;
}

struct Work {
  const Problem& problem;
  std::vector<Task> tasks;
  std::atomic<size_t> next{0};
  std::atomic<bool> out_of_memory{false};
};

// An exception that left a thread of the host's pool would end the process.
void take_tasks(void* context, int64_t) {
  Work& work = *static_cast<Work*>(context);
  const Kernel& chosen = kernel();
  try {
    for (size_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.tasks.size();)
      chosen.run(work.problem, work.tasks[i]);
  } catch (const std::bad_alloc&) {
    work.out_of_memory = true;
    work.next = work.tasks.size();  // the others need not go on
  }
}

}  // namespace

void varlen_attention(const Problem& problem, int64_t threads, ParallelFor parallel_for,
                      void* host) {
  Work work{problem, tasks_of(problem, threads)};
  const int64_t slots = std::min<int64_t>(threads, work.tasks.size());
  if (slots > 1)
    parallel_for(host, slots, take_tasks, &work);
  else
    take_tasks(&work, 0);
  if (work.out_of_memory) throw std::runtime_error("esm2::varlen_attention: out of memory");
}

}  // namespace esm2

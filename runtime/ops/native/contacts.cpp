// Splits the maps of a pack into blocks of rows, and what lies between them.

#include "contacts.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

namespace esm2 {

int64_t num_pairs(const int32_t* cu_seqlens, int64_t num_proteins) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < num_proteins; ++i) {
    const int64_t n = std::max(0, cu_seqlens[i + 1] - cu_seqlens[i] - 2);
    pairs += n * (n + 1) / 2;
  }
  return pairs;
}

namespace {

// Keys are packed anew for every block, which so many rows pay for; a map has no more blocks than that,
// for each keeps sums of all columns. By the length alone, so that threads change no sum's order.
constexpr int64_t least_block_rows = 64, most_blocks = 32;

struct Block {
  const Map* map;
  int64_t number;
};

struct Work {
  const Contacts& problem;
  std::vector<Map> maps;
  std::vector<Block> blocks;  // longest proteins first, so that the threads end together
  std::unique_ptr<float[]> memory;
  void (*take)(const Contacts&, const Block&) = nullptr;
  std::atomic<size_t> next{0};
  std::atomic<bool> out_of_memory{false};
};

int64_t floats_of(const Map& map, int64_t heads) {
  return map.length * map.length + (map.blocks() + 1) * heads * map.length + heads;
}

void lay_out(Work& work) {
  const Contacts& problem = work.problem;
  int64_t first_pair = 0, floats = 0;
  for (int64_t i = 0; i < problem.num_proteins; ++i) {
    const int64_t start = problem.cu_seqlens[i], n = problem.cu_seqlens[i + 1] - start - 2;
    if (n < 1) continue;
    const int64_t block_rows = std::max(least_block_rows, (n + most_blocks - 1) / most_blocks);
    work.maps.push_back({start, n, first_pair, block_rows, nullptr, nullptr, nullptr, nullptr});
    first_pair += n * (n + 1) / 2;
    floats += floats_of(work.maps.back(), problem.num_heads);
  }
  work.memory.reset(new float[floats]);
  float* at = work.memory.get();
  for (Map& map : work.maps) {
    const int64_t sums = problem.num_heads * map.length;
    map.sum = at;
    map.rows = map.sum + map.length * map.length;
    map.columns = map.rows + sums;
    map.scale = map.columns + map.blocks() * sums;
    at += floats_of(map, problem.num_heads);
    for (int64_t b = 0; b < map.blocks(); ++b) work.blocks.push_back({&map, b});
  }
  std::stable_sort(work.blocks.begin(), work.blocks.end(),
                   [](const Block& a, const Block& b) { return a.map->length > b.map->length; });
}

// Row sums become those of the symmetric maps: rows and columns. In float64, for they divide.
void sum_up(const Contacts& problem, const Map& map) {
  const int64_t n = map.length;
  for (int64_t head = 0; head < problem.num_heads; ++head) {
    float* rows = map.rows + head * n;
    for (int64_t b = 0; b < map.blocks(); ++b) {
      const float* columns = map.columns + (b * problem.num_heads + head) * n;
      for (int64_t j = 0; j < n; ++j) rows[j] += columns[j];
    }
    double total = 0;
    for (int64_t j = 0; j < n; ++j) total += rows[j];
    map.scale[head] = static_cast<float>(problem.weight[head] / total);
  }
}

// An exception that left a thread of the host's pool would end the process.
void take_blocks(void* context, int64_t) {
  Work& work = *static_cast<Work*>(context);
  try {
    for (size_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.blocks.size();)
      work.take(work.problem, work.blocks[i]);
  } catch (const std::bad_alloc&) {
    work.out_of_memory = true;
    work.next = work.blocks.size();
  }
}

void run(Work& work, int64_t threads, ParallelFor parallel_for, void* host,
         void (*take)(const Contacts&, const Block&)) {
  work.take = take;
  work.next = 0;
  const int64_t slots = std::min<int64_t>(threads, work.blocks.size());
  if (slots > 1)
    parallel_for(host, slots, take_blocks, &work);
  else
    take_blocks(&work, 0);
  if (work.out_of_memory) throw std::runtime_error("esm2::add_contacts: out of memory");
}

}  // namespace

void contacts(const Contacts& problem, int64_t threads, ParallelFor parallel_for, void* host) {
  Work work{problem};
  try {
    lay_out(work);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("esm2::add_contacts: out of memory");
  }
  run(work, threads, parallel_for, host, [](const Contacts& problem, const Block& block) {
    contacts_kernel().attend(problem, *block.map, block.number);
  });
  for (const Map& map : work.maps) sum_up(problem, map);
  run(work, threads, parallel_for, host, [](const Contacts& problem, const Block& block) {
    contacts_kernel().finish(problem, *block.map, block.number);
  });
}

}  // namespace esm2

// From sequences to a pack: ESM-2's alphabet, and proteins one after the other without padding.

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace esm2 {

// The order that the embedding table was trained with; see runtime/tokenizer.py.
constexpr std::array<std::string_view, 33> tokens = {
    "<cls>", "<pad>", "<eos>", "<unk>",  //
    "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K", "Q", "N", "F", "Y", "M", "H", "W", "C",
    "X", "B", "U", "Z", "O", ".", "-",  //
    "<null_1>", "<mask>"};
constexpr int64_t cls_id = 0, pad_id = 1, eos_id = 2;

struct Record {
  std::string name, sequence;
};

struct Pack {
  at::Tensor input_ids;   // [T] int64
  at::Tensor cu_seqlens;  // [N + 1] int32
  at::Tensor max_seqlen;  // [] int64
};

// A frozen model on the CPU.
class Engine {
 public:
  virtual ~Engine() = default;
  // The outputs in the order of the manifest's signature.
  virtual std::vector<at::Tensor> run(const Pack& pack) = 0;
};

// Appends the protein between BOS and EOS. Throws std::runtime_error on what is not in the alphabet.
inline void append_tokens(const Record& record, std::vector<int64_t>& ids) {
  const std::string_view sequence = record.sequence;
  ids.push_back(cls_id);
  for (size_t i = 0; i < sequence.size();) {
    // No token begins another, so the first that fits is the only one.
    const auto* token = std::find_if(tokens.begin(), tokens.end(), [&](std::string_view t) {
      return sequence.compare(i, t.size(), t) == 0;
    });
    const int64_t id = token - tokens.begin();
    if (token == tokens.end() || id == pad_id)
      throw std::runtime_error("record '" + record.name + "': position " + std::to_string(i + 1) +
                               " is not a residue of ESM-2's alphabet");
    ids.push_back(id);
    i += token->size();
  }
  ids.push_back(eos_id);
}

inline Pack pack(const std::vector<Record>& records) {
  std::vector<int64_t> ids;
  std::vector<int32_t> bounds = {0};
  int64_t longest = 0;
  for (const Record& record : records) {
    append_tokens(record, ids);
    bounds.push_back(static_cast<int32_t>(ids.size()));
    longest = std::max<int64_t>(longest, bounds.back() - bounds.end()[-2]);
  }
  return {at::tensor(ids, at::kLong), at::tensor(bounds, at::kInt),
          at::scalar_tensor(longest, at::kLong)};
}

// The mean over each protein's residues, neither BOS nor EOS: [T, E] to [N, E].
inline at::Tensor mean_of_residues(const at::Tensor& representations, const at::Tensor& cu_seqlens) {
  const auto bounds = cu_seqlens.accessor<int32_t, 1>();
  std::vector<at::Tensor> means;
  for (int64_t i = 0; i + 1 < bounds.size(0); ++i) {
    const at::Tensor residues = representations.slice(0, bounds[i] + 1, bounds[i + 1] - 1);
    // A float32 sum over a long protein would add more error than the engine has.
    means.push_back(residues.to(at::kDouble).mean(0).to(representations.scalar_type()));
  }
  return at::stack(means);
}

}  // namespace esm2

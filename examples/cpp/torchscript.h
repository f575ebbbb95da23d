// The TorchScript engine of an artifact: model.ts and its weights. The op library is loaded before.

#pragma once

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "op_library.h"
#include "pack.h"
#include "safetensors.h"

namespace esm2 {

class TorchScriptEngine : public Engine {
 public:
  // Throws std::runtime_error: a file is missing, damaged or foreign.
  TorchScriptEngine(const std::filesystem::path& artifact, const std::string& file, at::Device device)
      : device_(device) {
    const std::string path = (artifact / file).string();
    try {
      module_ = torch::jit::load(path, device);
    } catch (const c10::Error& error) {
      throw std::runtime_error("cannot load " + path + ": " + cause(error));
    }
    assign((artifact / "weights.safetensors").string());
    module_.eval();
  }

  std::vector<at::Tensor> run(const Pack& pack) override {
    const c10::InferenceMode no_gradients;
    // The optimizer specialises to shapes, and no two packs have the same.
    const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
    const c10::IValue outputs =
        module_.forward({pack.input_ids.to(device_), pack.cu_seqlens.to(device_), pack.max_seqlen});
    std::vector<at::Tensor> tensors;
    for (const c10::IValue& output : outputs.toTupleRef().elements())
      tensors.push_back(output.toTensor());
    return tensors;
  }

 private:
  // Gives every parameter and buffer its tensor in the mapped file, or a copy of it on the card.
  void assign(const std::string& path) {
    auto weights = safetensors::load(path);
    std::vector<std::string> problems;
    const auto take = [&](const std::string& name, at::Tensor parameter) {
      const auto found = weights.find(name);
      if (found == weights.end()) {
        problems.push_back("it holds no '" + name + "'");
      } else if (found->second.scalar_type() != parameter.scalar_type() ||
                 found->second.sizes() != parameter.sizes()) {
        std::ostringstream problem;
        problem << "'" << name << "' is " << found->second.dtype() << " " << found->second.sizes()
                << ", expected " << parameter.dtype() << " " << parameter.sizes();
        problems.push_back(problem.str());
      } else {
        parameter.set_data(found->second.to(device_));
      }
    };
    for (const auto& parameter : module_.named_parameters()) take(parameter.name, parameter.value);
    for (const auto& buffer : module_.named_buffers()) take(buffer.name, buffer.value);
    if (problems.empty()) return;
    const size_t others = problems.size() - 1;
    throw std::runtime_error(path + " does not fit model.ts: " + problems[0] +
                             (others ? ", and " + std::to_string(others) + " more" : ""));
  }

  at::Device device_;
  torch::jit::Module module_;
};

}  // namespace esm2

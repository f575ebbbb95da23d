// The AOTInductor engine of an artifact: model.pt2 and its weights. The op library is loaded before.

#pragma once

#include <c10/core/InferenceMode.h>
#include <sys/utsname.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>
#include <torch/version.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "op_library.h"
#include "pack.h"
#include "safetensors.h"

namespace esm2 {

// Throws std::runtime_error where this processor cannot run code for `instructions`, a field of the
// manifest: a level of x86-64, or the name of a processor. Code for others would end in a signal.
inline void check_instructions(const std::string& instructions) {
  struct utsname here {};
  uname(&here);
  const std::string machine = here.machine;
#if defined(__x86_64__)
  if (instructions == "x86-64-v3") {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
      return;
    throw std::runtime_error("the engine is built for " + instructions +
                             ", and this processor lacks AVX2, FMA, BMI or BMI2");
  }
#endif
  if (instructions.find(machine) == std::string::npos)
    throw std::runtime_error("the engine is built for " + instructions + ", and this processor is " +
                             machine);
}

class AotInductorEngine : public Engine {
 public:
  // Throws std::runtime_error: a file is missing, damaged or foreign.
  AotInductorEngine(const std::filesystem::path& artifact, const std::string& file, at::Device device)
      : device_(device) {
    const std::string path = (artifact / file).string();
    const std::string weights_path = (artifact / "weights.safetensors").string();
    const auto weights = safetensors::load(weights_path);
    // On a card a forward would otherwise wait for the one before.
    const bool on_card = device.is_cuda();
    try {
      loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path, "model", on_card);
      for (const auto& [name, dtype] : loader_->get_runner()->getConstantNamesToDtypes()) {
        // Several names of the compiled code may stand for one parameter.
        const std::string parameter = loader_->get_runner()->getConstantNamesToOriginalFQNs().at(name);
        const auto found = weights.find(parameter);
        if (found == weights.end() || static_cast<int32_t>(found->second.scalar_type()) != dtype)
          throw std::runtime_error(weights_path + " does not fit " + file + ": it holds no '" +
                                   parameter + "' of the right dtype");
        constants_[parameter] = found->second.to(device);
      }
      const bool use_inactive = false, check_all_are_given = true, user_managed = true;
      loader_->load_constants(constants_, use_inactive, check_all_are_given, user_managed);
    } catch (const c10::Error& error) {
      // Packages are for the version of PyTorch that made them.
      throw std::runtime_error("cannot load " + path + ": " + cause(error) +
                               " (here PyTorch " TORCH_VERSION ", see built_with in the manifest)");
    }
  }

  std::vector<at::Tensor> run(const Pack& pack) override {
    const c10::InferenceMode no_gradients;
    return loader_->run({pack.input_ids.to(device_), pack.cu_seqlens.to(device_), pack.max_seqlen});
  }

 private:
  at::Device device_;
  // The compiled code holds their addresses alone.
  std::unordered_map<std::string, at::Tensor> constants_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

}  // namespace esm2

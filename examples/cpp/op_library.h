// What every engine of libtorch shares: the op library, and messages of one line.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>

namespace esm2 {

// PyTorch's messages run over many lines; TorchScript puts its trace before what happened.
inline std::string cause(const c10::Error& error) {
  std::istringstream lines(error.what_without_backtrace());
  std::string line, first;
  while (std::getline(lines, line)) {
    if (line.find("rror: ") != std::string::npos) return line;
    if (first.empty()) first = line;
  }
  return first;
}

// Loading the library registers esm2::varlen_attention; it stays loaded until the process ends.
inline void load_op(const std::string& library) {
  if (!std::filesystem::exists(library))
    throw std::runtime_error("there is no " + library + ": the engine needs the op that it registers");
  // Of another processor's library dlopen says that there is no such file.
  void* loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!loaded)
    throw std::runtime_error("cannot load " + library + ": for another processor, system or PyTorch (" +
                             dlerror() + ")");
  if (!c10::Dispatcher::singleton().findSchema({"esm2::varlen_attention", ""}))
    throw std::runtime_error(library + " does not register esm2::varlen_attention: "
                             "it is not this artifact's, or is older and ESM2_OPS_IN_PYTHON is set");
  // The dispatcher reads a value for each argument of the running PyTorch, whatever it is handed.
  const auto flash = c10::Dispatcher::singleton().findSchema({"aten::_flash_attention_forward", ""});
  const auto stack = reinterpret_cast<int (*)()>(dlsym(loaded, "esm2_dispatcher_stack"));
  if (flash && stack && flash->schema().arguments().size() > static_cast<size_t>(stack()))
    throw std::runtime_error(library + " is older than this PyTorch, whose flash kernel takes " +
                             std::to_string(flash->schema().arguments().size()) + " arguments, expected at most " +
                             std::to_string(stack()) + ": export the artifact again");
}

}  // namespace esm2

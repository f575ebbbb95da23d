// Embeds the proteins of a FASTA file as one pack:
// embed ARTIFACT PROTEINS.fasta OUT_FOLDER [ENGINE [DEVICE]]
//
// Writes embeddings.npy, the mean over each protein's residues in the last exported layer, and every
// output of the engine under its own name. Exit status 2: something given is unfit; 1: the run failed.

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "aotinductor.h"
#include "op_library.h"
#include "pack.h"
#include "torchscript.h"

namespace {

namespace fs = std::filesystem;

nlohmann::json read_manifest(const fs::path& artifact) {
  const fs::path path = artifact / "manifest.json";
  std::ifstream file(path);
  if (!file) throw std::runtime_error(artifact.string() + " is not an artifact: no manifest.json");
  nlohmann::json manifest = nlohmann::json::parse(file, nullptr, false);
  if (manifest.is_discarded()) throw std::runtime_error(path.string() + " is damaged: not JSON");
  return manifest;
}

std::vector<esm2::Record> read_fasta(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<esm2::Record> records;
  for (std::string line; std::getline(file, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (line.empty()) continue;
    if (line[0] == '>')
      records.push_back({line.substr(1, line.find_first_of(" \t") - 1), ""});
    else if (records.empty())
      throw std::runtime_error(path + " is not FASTA: it does not start with '>'");
    else
      records.back().sequence += line;
  }
  if (records.empty()) throw std::runtime_error(path + " holds no proteins");
  for (const esm2::Record& record : records)
    if (record.sequence.empty())
      throw std::runtime_error("record '" + record.name + "' holds no residues");
  return records;
}

// NumPy's format 1.0 (numpy.lib.format). It has no bfloat16; float32 holds every bfloat16 exactly.
void write_npy(const fs::path& path, const at::Tensor& tensor) {
  const bool half = tensor.scalar_type() == at::kHalf;
  const at::Tensor values = tensor.to(half ? at::kHalf : at::kFloat).contiguous();
  std::string header = std::string("{'descr': '") + (half ? "<f2" : "<f4") +
                       "', 'fortran_order': False, 'shape': (";
  for (const int64_t size : values.sizes()) header += std::to_string(size) + ",";
  header += ")}";
  header.resize((10 + header.size()) / 64 * 64 + 63 - 10, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY\x01" << '\0' << static_cast<char>(header.size() & 255)
       << static_cast<char>(header.size() >> 8) << header;
  file.write(static_cast<const char*>(values.const_data_ptr()),
             static_cast<std::streamsize>(values.nbytes()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

std::unique_ptr<esm2::Engine> load(const fs::path& artifact, const nlohmann::json& manifest,
                                   const std::string& name, at::Device device) {
  std::string file, op_library, instructions;
  try {
    const nlohmann::json& engine = manifest.at("engines").at(name);
    file = engine.at("file");
    op_library = engine.at("op_library");
    if (!engine.at("instructions").is_null()) instructions = engine.at("instructions");
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(artifact.string() + " holds no engine '" + name +
                             "' with an op library: " + error.what());
  }
  if (!instructions.empty()) esm2::check_instructions(instructions);
  esm2::load_op((artifact / op_library).string());
  if (name == "torchscript") return std::make_unique<esm2::TorchScriptEngine>(artifact, file, device);
  return std::make_unique<esm2::AotInductorEngine>(artifact, file, device);
}

void embed(const fs::path& artifact, const std::string& fasta, const fs::path& out,
           const std::string& engine, at::Device device) {
  const nlohmann::json manifest = read_manifest(artifact);
  const esm2::Pack pack = esm2::pack(read_fasta(fasta));
  std::vector<at::Tensor> outputs = load(artifact, manifest, engine, device)->run(pack);
  for (at::Tensor& output : outputs) output = output.cpu();
  std::vector<std::string> names;
  for (const nlohmann::json& output : manifest.at("signature").at("outputs"))
    names.push_back(output.at("name"));
  if (outputs.size() != names.size())
    throw std::runtime_error("the engine does not give the outputs that the manifest lists");

  fs::create_directories(out);
  at::Tensor last_layer;
  for (size_t i = 0; i < names.size(); ++i) {
    write_npy(out / (names[i] + ".npy"), outputs[i]);
    // Layers ascend.
    if (names[i].rfind("representations.", 0) == 0) last_layer = outputs[i];
  }
  if (last_layer.defined())
    write_npy(out / "embeddings.npy", esm2::mean_of_residues(last_layer, pack.cu_seqlens));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string engine = argc > 4 ? argv[4] : "torchscript", device = argc > 5 ? argv[5] : "cpu";
  // AOTInductor compiles for one of them.
  const bool fits = engine == "torchscript" ? device == "cpu" || device == "cuda"
                                            : engine == (device == "cuda" ? "aoti-cuda" : "aoti");
  if (argc < 4 || argc > 6 || !fits) {
    std::cerr << "usage: embed ARTIFACT PROTEINS.fasta OUT_FOLDER [torchscript|aoti [cpu]]\n"
                 "       embed ARTIFACT PROTEINS.fasta OUT_FOLDER torchscript|aoti-cuda cuda\n";
    return 2;
  }
  try {
    embed(argv[1], argv[2], argv[3], engine, at::Device(device));
  } catch (const c10::Error& error) {
    std::cerr << "embed: PyTorch failed: " << esm2::cause(error) << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "embed: " << error.what() << "\n";
    return 2;
  }
  return 0;
}

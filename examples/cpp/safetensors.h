// The tensors of a .safetensors file, without a copy: they lie where the file is mapped into memory.
// Format: https://github.com/huggingface/safetensors#format

#pragma once

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace safetensors {

// A whole file, read-only; unmapped with the last tensor that lies in it.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    const bool found = file >= 0 && fstat(file, &status) == 0;
    if (found && status.st_size > 0) {
      size_ = static_cast<uint64_t>(status.st_size);
      data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    }
    const int reason = errno;
    if (file >= 0) close(file);
    if (!found || data_ == MAP_FAILED)
      throw std::runtime_error("cannot read " + path + ": " + std::strerror(reason));
  }
  ~MappedFile() {
    if (data_ != MAP_FAILED && size_) munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  uint64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  uint64_t size_ = 0;
};

// The format's own limit: a header is never longer.
constexpr uint64_t max_header_bytes = 100'000'000;

inline at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> dtypes = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16},
      {"I64", at::kLong},   {"I32", at::kInt},   {"U8", at::kByte},  {"BOOL", at::kBool},
  };
  const auto found = dtypes.find(name);
  if (found == dtypes.end()) throw std::runtime_error("dtype " + name + " is unknown here");
  return found->second;
}

// One entry of the header, checked: from `begin` to `end` lies within the data and fits shape and dtype.
struct Entry {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;

  Entry(const nlohmann::json& json, const uint8_t* data, uint64_t data_bytes)
      : dtype(dtype_of(json.at("dtype"))) {
    const nlohmann::json& offsets = json.at("data_offsets");
    if (json.at("shape").is_array() && offsets.is_array() && offsets.size() == 2) {
      begin = whole_number(offsets[0]);
      end = whole_number(offsets[1]);
      // No size can be larger than the data, so no product of two can overflow.
      const uint64_t most = uint64_t{1} << 31, width = at::elementSize(dtype);
      uint64_t elements = 1;
      for (const nlohmann::json& size : json.at("shape")) {
        shape.push_back(static_cast<int64_t>(std::min(whole_number(size), most)));
        elements = std::min(elements * static_cast<uint64_t>(shape.back()), most);
      }
      const bool fits = elements < most && begin <= end && end <= data_bytes;
      if (fits && end - begin == elements * width) {
        if (reinterpret_cast<uintptr_t>(data + begin) % width == 0) return;
        throw std::runtime_error("its data is not aligned");
      }
    }
    throw std::runtime_error("shape and data_offsets do not fit each other or the file's size");
  }

  static uint64_t whole_number(const nlohmann::json& json) {
    if (!json.is_number_unsigned()) throw std::runtime_error("a size is not a whole number");
    return json.get<uint64_t>();
  }
};

inline std::map<std::string, at::Tensor> tensors_of(const std::shared_ptr<MappedFile>& file) {
  if (file->size() < 8) throw std::runtime_error("it ends within the header");
  uint64_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) header_bytes |= uint64_t{file->data()[i]} << (8 * i);
  if (header_bytes > std::min(file->size() - 8, max_header_bytes))
    throw std::runtime_error("it ends within the header");
  uint8_t* header = file->data() + 8;
  uint8_t* data = header + header_bytes;
  const uint64_t data_bytes = file->size() - 8 - header_bytes;
  const nlohmann::json json = nlohmann::json::parse(header, data, nullptr, false);
  if (!json.is_object()) throw std::runtime_error("its header is not a JSON object");

  std::map<std::string, at::Tensor> tensors;
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") continue;
    try {
      const Entry entry(value, data, data_bytes);
      spans.emplace_back(entry.begin, entry.end);
      tensors[name] = at::from_blob(
          data + entry.begin, entry.shape, [file](void*) {}, at::dtype(entry.dtype));
    } catch (const std::exception& error) {
      throw std::runtime_error("tensor '" + name + "': " + error.what());
    }
  }
  // The format allows neither holes nor overlaps nor a tail: a file cut short or longer is damaged.
  std::sort(spans.begin(), spans.end());
  uint64_t reached = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != reached) throw std::runtime_error("its tensors leave holes or overlap");
    reached = end;
  }
  if (reached != data_bytes) throw std::runtime_error("its data and its header differ in length");
  return tensors;
}

// All tensors of the file by name. Throws std::runtime_error: unreadable, damaged, or a dtype that is
// unknown here; names the file.
inline std::map<std::string, at::Tensor> load(const std::string& path) {
  const auto file = std::make_shared<MappedFile>(path);
  try {
    return tensors_of(file);
  } catch (const std::exception& error) {
    throw std::runtime_error(path + " is damaged or no safetensors file: " + error.what());
  }
}

}  // namespace safetensors

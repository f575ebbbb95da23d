// Packed attention on a CPU: what the PyTorch op and the ONNX Runtime ops share.
#pragma once

#include <cstdint>

namespace esm2 {

enum class Dtype { float32, float16, bfloat16 };

// [T, H, D] with D contiguous; strides in elements.
struct Strided {
  const void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// Rotary's tables, [T, D] each: x becomes x * cos + (x with its halves swapped) * sin.
struct Rotary {
  const float* cos;
  const float* sin;
};

struct Problem {
  Dtype dtype;
  Strided q, k, v;
  Rotary rotary;  // of q and k; nullptr: they are rotated already
  void* out;  // [T, H, D], contiguous
  const int32_t* cu_seqlens;  // [N + 1]
  int64_t num_proteins;
  int64_t num_heads;
  int64_t head_dim;
  float softmax_scale;
};

// Queries [begin, end) of one protein, in the heads from first_head to before last_head.
struct Task {
  int32_t protein;
  int32_t first_head;
  int32_t last_head;
  int64_t begin;
  int64_t end;
};

// One instruction set's kernel, for people and for the choice at load.
struct Kernel {
  const char* name;
  void (*run)(const Problem&, const Task&);
};

// Of the widest instruction set that this processor has, or of the one that it has and that
// ESM2_OPS_INSTRUCTIONS names. Read once.
const Kernel& kernel();

// Runs `body(context, slot)` for every slot below `slots`, on as many threads as the host gives.
using ParallelFor = void (*)(void* host, int64_t slots, void (*body)(void*, int64_t), void* context);

// Attention of every protein with itself. `threads` bounds the slots that ask for work. Throws
// std::exception on the calling thread, never on one of the pool's.
void varlen_attention(const Problem&, int64_t threads, ParallelFor, void* host);

// What is wrong with cu_seqlens for T tokens, or nullptr.
const char* problem_with(const int32_t* cu_seqlens, int64_t num_bounds, int64_t num_tokens);

}  // namespace esm2

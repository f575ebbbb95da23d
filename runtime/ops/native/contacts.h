// One layer's share of contact logits on a CPU: what the PyTorch op and the ONNX Runtime op share.
#pragma once

#include "varlen_attention.h"

namespace esm2 {

// P: pairs i <= j of the residues of each protein, row by row: n (n + 1) / 2 of n residues. A protein's
// first and last token are no residues (BOS and EOS).
struct Contacts {
  Dtype dtype;
  Strided q, k;               // rotated
  const int32_t* cu_seqlens;  // [N + 1]
  int64_t num_proteins;
  int64_t num_heads;
  int64_t head_dim;
  float softmax_scale;
  const bool* is_kept;  // [T]: attention of and to others counts as 0
  const float* weight;  // [H], of each head's map
  const float* logits;  // [P], of the layers before
  float* out;           // [P]
};

// One protein's attention among its residues, summed up over heads, and what its maps sum to.
struct Map {
  int64_t start;       // its first token
  int64_t length;      // n residues
  int64_t first_pair;  // in [P]
  int64_t block_rows;  // residues whose attention one task takes
  float* sum;          // [n, n], weighted
  float* rows;         // [H, n]; later the row and the column sums of each map
  float* columns;      // [blocks, H, n]: column sums of each block of rows
  float* scale;        // [H]: weight over the sum of all

  int64_t blocks() const { return (length + block_rows - 1) / block_rows; }
};

// One instruction set's kernels, for the rows of one block of a map.
struct ContactsKernel {
  const char* name;
  void (*attend)(const Contacts&, const Map&, int64_t block);  // to sum, rows and columns
  void (*finish)(const Contacts&, const Map&, int64_t block);  // to out
};

// Of the instruction set of kernel().
const ContactsKernel& contacts_kernel();

// How many pairs; what contacts() reads and writes.
int64_t num_pairs(const int32_t* cu_seqlens, int64_t num_proteins);

// out = logits + this layer's share. Throws as varlen_attention does.
void contacts(const Contacts&, int64_t threads, ParallelFor, void* host);

}  // namespace esm2

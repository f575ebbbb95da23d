// esm2::varlen_attention, esm2::add_contacts and esm2::rotary for PyTorch, on its stable ABI: one file for every torch from 2.11 on.
//
// Loading this library registers the ops (torch.ops.load_library, or dlopen from C++). Where this process's
// Python has defined them already, it says so: ESM2_OPS_IN_PYTHON holds the process id, so that children
// are not misled. Then the library adds the CPU kernel alone, and no forward on a CPU needs the
// interpreter, but where Python asks for its own kernels (esm2_attend_in_python).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <unistd.h>

#include <cstdlib>

#include "contacts.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3,
                  "esm2::varlen_attention: q, k and v must be [T, H, D]");
  for (const Tensor* x : {&k, &v}) {
    STD_TORCH_CHECK(x->scalar_type() == q.scalar_type(),
                    "esm2::varlen_attention: q, k and v must have one dtype");
    for (int i = 0; i < 3; ++i)
      STD_TORCH_CHECK(x->size(i) == q.size(i),
                      "esm2::varlen_attention: q, k and v must have one shape, got dimension ", i, " of ",
                      q.size(i), " and ", x->size(i));
  }
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == ScalarType::Int,
                  "esm2::varlen_attention: cu_seqlens must be int32 [N + 1]");
}

bool is_known(const Tensor& q) {
  const auto dtype = q.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

esm2::Dtype dtype_of(const Tensor& q) {
  STD_TORCH_CHECK(is_known(q), "esm2::varlen_attention: this kernel takes float32, float16 and bfloat16");
  return q.scalar_type() == ScalarType::Float  ? esm2::Dtype::float32
         : q.scalar_type() == ScalarType::Half ? esm2::Dtype::float16
                                               : esm2::Dtype::bfloat16;
}

Tensor with_dense_rows(const Tensor& x) {
  return x.stride(2) == 1 || x.size(2) == 1 ? x : torch::stable::contiguous(x);
}

esm2::Strided strided(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1)}; }

void run_slots(void*, int64_t slots, void (*body)(void*, int64_t), void* context) {
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) body(context, slot);
  });
}

Tensor on_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& cu_seqlens_in,
              int64_t, double softmax_scale) {
  check_shapes(q_in, k_in, v_in, cu_seqlens_in);
  const Tensor q = with_dense_rows(q_in), k = with_dense_rows(k_in), v = with_dense_rows(v_in);
  const Tensor bounds = torch::stable::contiguous(cu_seqlens_in);
  const auto* cu_seqlens = static_cast<const int32_t*>(bounds.const_data_ptr());
  const char* problem = esm2::problem_with(cu_seqlens, bounds.size(0), q.size(0));
  STD_TORCH_CHECK(!problem, "esm2::varlen_attention: ", problem);
  const int64_t shape[] = {q.size(0), q.size(1), q.size(2)};
  Tensor out = torch::stable::new_empty(q, {shape, 3});
  esm2::varlen_attention({dtype_of(q), strided(q), strided(k), strided(v), {}, out.mutable_data_ptr(),
                          cu_seqlens, bounds.size(0) - 1, q.size(1), q.size(2),
                          static_cast<float>(softmax_scale)},
                         torch::stable::get_num_threads(), run_slots, nullptr);
  return out;
}

// out = logits + this layer's share of them.
Tensor add_contacts(const Tensor& logits_in, const Tensor& q_in, const Tensor& k_in,
                    const Tensor& cu_seqlens_in, double softmax_scale, const Tensor& is_kept_in,
                    const Tensor& weight_in) {
  check_shapes(q_in, k_in, k_in, cu_seqlens_in);
  const Tensor q = with_dense_rows(q_in), k = with_dense_rows(k_in);
  const Tensor bounds = torch::stable::contiguous(cu_seqlens_in), weight = torch::stable::contiguous(weight_in);
  const Tensor logits = torch::stable::contiguous(logits_in), is_kept = torch::stable::contiguous(is_kept_in);
  const auto* cu_seqlens = static_cast<const int32_t*>(bounds.const_data_ptr());
  const char* problem = esm2::problem_with(cu_seqlens, bounds.size(0), q.size(0));
  STD_TORCH_CHECK(!problem, "esm2::add_contacts: ", problem);
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() == 1 && weight.size(0) == q.size(1),
                  "esm2::add_contacts: weight must be float32 [H]");
  STD_TORCH_CHECK(is_kept.scalar_type() == ScalarType::Bool && is_kept.dim() == 1 && is_kept.size(0) == q.size(0),
                  "esm2::add_contacts: is_kept must be bool [T]");
  STD_TORCH_CHECK(logits.scalar_type() == ScalarType::Float && logits.dim() == 1 &&
                      logits.size(0) == esm2::num_pairs(cu_seqlens, bounds.size(0) - 1),
                  "esm2::add_contacts: logits must be float32 [P], of ",
                  esm2::num_pairs(cu_seqlens, bounds.size(0) - 1), " pairs");
  Tensor out = torch::stable::empty_like(logits);
  esm2::contacts({dtype_of(q), strided(q), strided(k), cu_seqlens, bounds.size(0) - 1, q.size(1), q.size(2),
                  static_cast<float>(softmax_scale), static_cast<const bool*>(is_kept.const_data_ptr()),
                  static_cast<const float*>(weight.const_data_ptr()),
                  static_cast<const float*>(logits.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr())},
                 torch::stable::get_num_threads(), run_slots, nullptr);
  return out;
}

// More than any schema of it has had: 15 arguments in 2.11, 17 in 2.13. The stable ABI has no way to ask
// for a schema (2.13), so who loads this library compares: Python, and examples/cpp/op_library.h.
constexpr int kDispatcherStack = 64;

// PyTorch's own flash kernels, through its dispatcher: nothing here is compiled for a GPU.
Tensor on_cuda(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
               int64_t max_seqlen, double softmax_scale) {
  check_shapes(q, k, v, cu_seqlens);
  STD_TORCH_CHECK(q.scalar_type() == ScalarType::Half || q.scalar_type() == ScalarType::BFloat16,
                  "esm2::varlen_attention on CUDA takes float16 and bfloat16 outside Python: PyTorch's "
                  "flash kernels know no other dtype. Export the engine with --dtype bfloat16");
  STD_TORCH_CHECK(q.size(2) % 8 == 0 && q.size(2) <= 256,
                  "esm2::varlen_attention on CUDA takes head dims that are multiples of 8 up to 256, got ",
                  q.size(2));
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const std::optional<Tensor> bounds(cu_seqlens);
  const std::optional<double> scale(softmax_scale);
  // aten::_flash_attention_forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p,
  // is_causal, return_debug_mask, *, scale, ...) -> five tensors. What follows differs among versions
  // of PyTorch (window sizes, seqused_k, alibi_slopes in 2.11; two more in 2.13), is optional, and the
  // dispatcher reads as many values as the schema of the running version has: zeros are none.
  StableIValue stack[kDispatcherStack] = {from(q), from(k), from(v), from(bounds), from(bounds),
                                          from(max_seqlen), from(max_seqlen), from(0.0), from(false),
                                          from(false), from(scale)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::_flash_attention_forward", "", stack, TORCH_FEATURE_VERSION));
  Tensor out = to<Tensor>(stack[0]);
  for (int i = 1; i < 5; ++i) to<Tensor>(stack[i]);  // owned, and not needed
  return out;
}

Tensor product(const Tensor& x, const Tensor& y) {
  using torch::stable::detail::from;
  StableIValue stack[kDispatcherStack] = {from(x), from(y)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack, TORCH_FEATURE_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// x [T, H, D] * cos + (its halves swapped) * sin, in the dtype of the tables, and rounded once.
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t half = x.size(2) / 2;
  Tensor out = torch::stable::empty_like(x);
  for (const int64_t here : {int64_t{0}, half}) {
    const auto of = [&](const Tensor& y, int64_t start) {
      Tensor viewed = y;
      return torch::stable::narrow(viewed, 2, start, half);
    };
    Tensor target = of(out, here);
    // Less the negative: the stable ABI has no sum of two tensors.
    torch::stable::copy_(target, torch::stable::subtract(product(of(x, here), of(cos, here)),
                                                         product(of(x, half - here), of(sin, here)), -1.0));
  }
  return out;
}

bool in_python() {
  const char* process = std::getenv("ESM2_OPS_IN_PYTHON");
  return process && std::atol(process) == getpid();
}

// Of this thread, for the forwards that it runs.
thread_local bool attends_in_python = false;

// Registered on the op's own name beside Python's, which takes what this kernel does not.
Tensor on_cpu_beside_python(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                            int64_t max_seqlen, double softmax_scale) {
  if (!attends_in_python && is_known(q)) return on_cpu(q, k, v, cu_seqlens, max_seqlen, softmax_scale);
  using torch::stable::detail::from;
  StableIValue stack[6] = {from(q), from(k), from(v), from(cu_seqlens), from(max_seqlen),
                           from(softmax_scale)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("esm2::varlen_attention_python", "", stack, TORCH_FEATURE_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor add_contacts_beside_python(const Tensor& logits, const Tensor& q, const Tensor& k,
                                  const Tensor& cu_seqlens, double softmax_scale, const Tensor& is_kept,
                                  const Tensor& weight) {
  if (!attends_in_python && is_known(q))
    return add_contacts(logits, q, k, cu_seqlens, softmax_scale, is_kept, weight);
  using torch::stable::detail::from;
  StableIValue stack[7] = {from(logits), from(q), from(k), from(cu_seqlens), from(softmax_scale),
                           from(is_kept), from(weight)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("esm2::add_contacts_python", "", stack, TORCH_FEATURE_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

#define ESM2_CONTACTS_SCHEMA                                                                         \
  "(Tensor logits, Tensor q, Tensor k, Tensor cu_seqlens, float softmax_scale, Tensor is_kept, Tensor weight)" \
  " -> Tensor"
#define ESM2_SCHEMA \
  "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float softmax_scale) -> Tensor"

STABLE_TORCH_LIBRARY_FRAGMENT(esm2, m) {
  m.def("varlen_attention_native" ESM2_SCHEMA);
  if (in_python()) return;
  m.def("varlen_attention" ESM2_SCHEMA);
  m.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("add_contacts" ESM2_CONTACTS_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(esm2, CompositeExplicitAutograd, m) {
  if (!in_python()) m.impl("rotary", TORCH_BOX(&rotary));
}

STABLE_TORCH_LIBRARY_IMPL(esm2, CPU, m) {
  m.impl("varlen_attention_native", TORCH_BOX(&on_cpu));
  if (in_python()) {
    m.impl("varlen_attention", TORCH_BOX(&on_cpu_beside_python));
    m.impl("add_contacts", TORCH_BOX(&add_contacts_beside_python));
  } else {
    m.impl("varlen_attention", TORCH_BOX(&on_cpu));
    m.impl("add_contacts", TORCH_BOX(&add_contacts));
  }
}

STABLE_TORCH_LIBRARY_IMPL(esm2, CUDA, m) {
  m.impl("varlen_attention_native", TORCH_BOX(&on_cuda));
  if (!in_python()) m.impl("varlen_attention", TORCH_BOX(&on_cuda));
}

// Whether the forwards of this thread run Python's kernels; returns what held before.
extern "C" __attribute__((visibility("default"))) bool esm2_attend_in_python(bool wanted) {
  const bool before = attends_in_python;
  attends_in_python = wanted;
  return before;
}

// The instruction set in use, for people.
extern "C" __attribute__((visibility("default"))) const char* esm2_instruction_set() {
  return esm2::kernel().name;
}

// How many values an op of PyTorch that is called here can take.
extern "C" __attribute__((visibility("default"))) int esm2_dispatcher_stack() { return kDispatcherStack; }

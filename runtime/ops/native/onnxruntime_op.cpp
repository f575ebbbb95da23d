// esm2::VarlenAttention, esm2::VarlenRotaryAttention and esm2::AddContacts for ONNX Runtime on CPUs. Registered with a
// session's options, they take precedence over the model-local functions of the same names.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

#include "contacts.h"
#include "onnxruntime_api.h"

namespace {

namespace ort = esm2::ort;

struct Kernel {
  const ort::Api* api;
  float softmax_scale;
  esm2::Dtype dtype;
  bool rotary;
  int threads;
};

using Compute = ort::Status* (*)(void*, ort::KernelContext*);

// One op of a name for each element type, whose inputs are q, k and v. `threads`: of the session's pool,
// its caller included.
struct Op : ort::CustomOp {
  const char* called;
  std::array<int, 7> inputs;  // their types; 0 beyond the last
  bool rotary;
  int threads;
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

struct Tensor {
  void* data;
  int64_t shape[3];
  size_t rank;
};

ort::Status* read(const ort::Api* api, const ort::KernelContext* context, size_t i, Tensor* out) {
  const ort::Value* value = nullptr;
  ort::ShapeInfo* info = nullptr;
  if (auto* failed = ort::input(api, context, i, &value)) return failed;
  if (auto* failed = ort::data(api, const_cast<ort::Value*>(value), &out->data)) return failed;
  if (auto* failed = ort::shape_info(api, value, &info)) return failed;
  ort::Status* failed = ort::rank(api, info, &out->rank);
  if (!failed && out->rank > 3) failed = ort::status(api, "esm2: an input of rank above 3");
  if (!failed) failed = ort::dimensions(api, info, out->shape, out->rank);
  ort::release(api, info);
  return failed;
}

struct Host {
  const ort::Api* api;
  ort::KernelContext* context;
  ort::Status* failed;
};

void run_slots(void* host_pointer, int64_t slots, void (*body)(void*, int64_t), void* context) {
  struct Call {
    void (*body)(void*, int64_t);
    void* context;
  } call{body, context};
  Host& host = *static_cast<Host*>(host_pointer);
  const auto run = [](void* data, size_t slot) {
    const Call& call = *static_cast<Call*>(data);
    call.body(call.context, static_cast<int64_t>(slot));
  };
  host.failed = ort::parallel_for(host.api, host.context, run, slots, 0, &call);
}

ort::Status* attend(void* kernel_pointer, ort::KernelContext* context) {
  const auto& kernel = *static_cast<Kernel*>(kernel_pointer);
  const ort::Api* api = kernel.api;
  Tensor inputs[4], tables[2] = {};  // q, k, v, cu_seqlens; max_seqlen is for other kernels; cos, sin
  for (size_t i = 0; i < 4; ++i)
    if (auto* failed = read(api, context, i, &inputs[i])) return failed;
  const Tensor &q = inputs[0], &bounds = inputs[3];
  for (const Tensor* x : {&inputs[1], &inputs[2]})
    if (q.rank != 3 || x->rank != 3 || !std::equal(q.shape, q.shape + 3, x->shape))
      return ort::status(api, "esm2::VarlenAttention: q, k and v must be [T, H, D], all the same");
  const int64_t tokens = q.shape[0], heads = q.shape[1], dim = q.shape[2];
  if (kernel.rotary) {
    const int64_t expected[] = {tokens, 1, dim};
    for (size_t i = 0; i < 2; ++i) {
      if (auto* failed = read(api, context, 5 + i, &tables[i])) return failed;
      if (tables[i].rank != 3 || !std::equal(expected, expected + 3, tables[i].shape) || dim % 2)
        return ort::status(api, "esm2::VarlenRotaryAttention: cos and sin must be [T, 1, D], D even");
    }
  }
  if (bounds.rank != 1) return ort::status(api, "esm2::VarlenAttention: cu_seqlens must be [N + 1]");
  const auto* cu_seqlens = static_cast<const int32_t*>(bounds.data);
  if (const char* problem = esm2::problem_with(cu_seqlens, bounds.shape[0], tokens))
    return ort::status(api, problem);
  ort::Value* value = nullptr;
  void* out = nullptr;
  if (auto* failed = ort::output(api, context, 0, q.shape, 3, &value)) return failed;
  if (auto* failed = ort::data(api, value, &out)) return failed;
  const auto strided = [&](int i) { return esm2::Strided{inputs[i].data, heads * dim, dim}; };
  const auto table = [&](int i) { return static_cast<const float*>(tables[i].data); };
  Host host{api, context, nullptr};
  try {
    esm2::varlen_attention({kernel.dtype, strided(0), strided(1), strided(2), {table(0), table(1)}, out,
                            cu_seqlens, bounds.shape[0] - 1, heads, dim, kernel.softmax_scale},
                           kernel.threads, run_slots, &host);
  } catch (const std::exception& error) {
    return ort::status(api, error.what());
  }
  return host.failed;
}

// logits, q, k, cu_seqlens, is_kept, weight
ort::Status* add_contacts(void* kernel_pointer, ort::KernelContext* context) {
  const auto& kernel = *static_cast<Kernel*>(kernel_pointer);
  const ort::Api* api = kernel.api;
  Tensor inputs[6];
  for (size_t i = 0; i < 6; ++i)
    if (auto* failed = read(api, context, i, &inputs[i])) return failed;
  const Tensor &logits = inputs[0], &q = inputs[1], &k = inputs[2], &bounds = inputs[3], &is_kept = inputs[4],
               &weight = inputs[5];
  if (q.rank != 3 || k.rank != 3 || !std::equal(q.shape, q.shape + 3, k.shape))
    return ort::status(api, "esm2::AddContacts: q and k must be [T, H, D], both the same");
  const int64_t tokens = q.shape[0], heads = q.shape[1], dim = q.shape[2];
  if (bounds.rank != 1) return ort::status(api, "esm2::AddContacts: cu_seqlens must be [N + 1]");
  const auto* cu_seqlens = static_cast<const int32_t*>(bounds.data);
  if (const char* problem = esm2::problem_with(cu_seqlens, bounds.shape[0], tokens))
    return ort::status(api, problem);
  const int64_t pairs = esm2::num_pairs(cu_seqlens, bounds.shape[0] - 1);
  if (logits.rank != 1 || logits.shape[0] != pairs || is_kept.rank != 1 || is_kept.shape[0] != tokens ||
      weight.rank != 1 || weight.shape[0] != heads)
    return ort::status(api, "esm2::AddContacts: logits must be [P], is_kept [T], weight [H]");
  ort::Value* value = nullptr;
  void* out = nullptr;
  if (auto* failed = ort::output(api, context, 0, logits.shape, 1, &value)) return failed;
  if (auto* failed = ort::data(api, value, &out)) return failed;
  Host host{api, context, nullptr};
  try {
    esm2::contacts({kernel.dtype, {q.data, heads * dim, dim}, {k.data, heads * dim, dim}, cu_seqlens,
                    bounds.shape[0] - 1, heads, dim, kernel.softmax_scale,
                    static_cast<const bool*>(is_kept.data), static_cast<const float*>(weight.data),
                    static_cast<const float*>(logits.data), static_cast<float*>(out)},
                   kernel.threads, run_slots, &host);
  } catch (const std::exception& error) {
    return ort::status(api, error.what());
  }
  return host.failed;
}

ort::Status* create_kernel(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                           void** out) {
  float softmax_scale = 0;
  if (auto* failed = ort::float_attribute(api, info, "softmax_scale", &softmax_scale)) return failed;
  const Op& own = self(op);
  const auto dtype = own.inputs[1] == ort::float16 ? esm2::Dtype::float16 : esm2::Dtype::float32;
  *out = new (std::nothrow) Kernel{api, softmax_scale, dtype, own.rotary, own.threads};
  return *out ? nullptr : ort::status(api, "esm2: out of memory");
}

Op op_for(const char* name, Compute compute, std::array<int, 7> inputs, int threads) {
  Op op{};
  op.version = ort::api_version;
  op.name = [](const ort::CustomOp* op) { return self(op).called; };
  op.provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op.input_count = [](const ort::CustomOp* op) -> size_t {
    const auto& inputs = self(op).inputs;
    return std::find(inputs.begin(), inputs.end(), 0) - inputs.begin();
  };
  op.input_type = [](const ort::CustomOp* op, size_t i) { return self(op).inputs[i]; };
  op.output_count = [](const ort::CustomOp*) -> size_t { return 1; };
  op.output_type = [](const ort::CustomOp* op, size_t) { return self(op).inputs[0]; };
  op.input_characteristic = op.output_characteristic = [](const ort::CustomOp*, size_t) { return 0; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.least_variadic_inputs = op.least_variadic_outputs = [](const ort::CustomOp*) { return 1; };
  op.are_variadic_inputs_alike = op.are_variadic_outputs_alike = [](const ort::CustomOp*) { return 1; };
  op.first_version = [](const ort::CustomOp*) { return 1; };
  op.last_version = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = create_kernel;
  op.compute_v2 = compute;
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.called = name;
  op.inputs = inputs;
  op.rotary = inputs[6] != 0;
  op.threads = threads;
  return op;
}

using Ops = std::array<Op, 5>;

// Sessions keep their addresses, so they stay: one set for each size of a pool.
const Ops& ops_for(int threads) {
  static std::mutex mutex;
  static auto& sets = *new std::map<int, Ops>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = sets.find(threads);
  if (found != sets.end()) return found->second;
  constexpr int f32 = ort::float32, f16 = ort::float16;
  return sets[threads] = {
             op_for("VarlenAttention", attend, {f32, f32, f32, ort::int32, ort::int64}, threads),
             op_for("VarlenAttention", attend, {f16, f16, f16, ort::int32, ort::int64}, threads),
             op_for("VarlenRotaryAttention", attend, {f32, f32, f32, ort::int32, ort::int64, f32, f32},
                    threads),
             op_for("AddContacts", add_contacts, {f32, f32, f32, ort::int32, ort::boolean, f32}, threads),
             op_for("AddContacts", add_contacts, {f32, f16, f16, ort::int32, ort::boolean, f32}, threads)};
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t mask;
  if (!sched_getaffinity(0, sizeof(mask), &mask)) return std::max(1, CPU_COUNT(&mask));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// The session's pool is not to be asked for its size: whoever makes it says so in an entry of its options.
ort::Status* threads_of(const ort::Api* api, const ort::SessionOptions* options, int* out) {
  constexpr const char* key = "esm2.threads";
  *out = usable_cores();
  int is_there = 0;
  if (auto* failed = ort::has_config_entry(api, options, key, &is_there)) return failed;
  if (!is_there) return nullptr;
  char value[16] = {};
  size_t size = sizeof(value);
  if (auto* failed = ort::config_entry(api, options, key, value, &size)) return failed;
  *out = std::atoi(value);
  return *out > 0 ? nullptr : ort::status(api, "esm2.threads must be a whole number of at least 1");
}

}  // namespace

// What SessionOptions.register_custom_ops_library calls.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->get_api(ort::api_version);
  int threads = 0;
  if (auto* failed = threads_of(api, options, &threads)) return failed;
  ort::OpDomain* domain = nullptr;
  if (auto* failed = ort::new_domain(api, "esm2", &domain)) return failed;
  try {
    for (const Op& op : ops_for(threads))
      if (auto* failed = ort::add_op(api, domain, &op)) return failed;
  } catch (const std::exception& error) {
    return ort::status(api, error.what());
  }
  return ort::add_domain(api, options, domain);
}

extern "C" __attribute__((visibility("default"))) const char* esm2_instruction_set() {
  return esm2::kernel().name;
}

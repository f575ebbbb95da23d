// The part of ONNX Runtime's C API that a custom op needs, so that no header of its must be installed.
// Its structs only ever grow at the end: OrtApi is read by slot number, and OrtCustomOp has the size of
// the version that it names. Source: onnxruntime_c_api.h; the slots were taken from 1.23.2's with offsetof.
#pragma once

#include <cstddef>
#include <cstdint>

namespace esm2::ort {

// The first with everything below (KernelContext_ParallelFor: 1.17), and with shape inference.
constexpr uint32_t api_version = 18;

struct Status;
struct Value;
struct ShapeInfo;
struct SessionOptions;
struct OpDomain;
struct KernelInfo;
struct KernelContext;

using Slot = void (*)();
struct Api {
  Slot slots[275];
};
struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// ONNXTensorElementDataType
constexpr int float32 = 1, int32 = 6, int64 = 7, boolean = 9, float16 = 10;

template <size_t Number, typename Return, typename... Arguments>
inline Return call(const Api* api, Arguments... arguments) {
  return reinterpret_cast<Return (*)(Arguments...)>(api->slots[Number])(arguments...);
}

inline Status* status(const Api* api, const char* message) {
  constexpr int fail = 1;
  return call<0, Status*>(api, fail, message);
}
inline Status* new_domain(const Api* api, const char* name, OpDomain** out) {
  return call<26, Status*>(api, name, out);
}
inline Status* add_op(const Api* api, OpDomain* domain, const struct CustomOp* op) {
  return call<27, Status*>(api, domain, op);
}
inline Status* add_domain(const Api* api, SessionOptions* options, OpDomain* domain) {
  return call<28, Status*>(api, options, domain);
}
inline Status* data(const Api* api, Value* value, void** out) {
  return call<51, Status*>(api, value, out);
}
inline Status* rank(const Api* api, const ShapeInfo* info, size_t* out) {
  return call<61, Status*>(api, info, out);
}
inline Status* dimensions(const Api* api, const ShapeInfo* info, int64_t* out, size_t count) {
  return call<62, Status*>(api, info, out, count);
}
inline Status* shape_info(const Api* api, const Value* value, ShapeInfo** out) {
  return call<65, Status*>(api, value, out);
}
inline Status* float_attribute(const Api* api, const KernelInfo* info, const char* name, float* out) {
  return call<85, Status*>(api, info, name, out);
}
inline Status* input(const Api* api, const KernelContext* context, size_t i, const Value** out) {
  return call<90, Status*>(api, context, i, out);
}
inline Status* output(const Api* api, KernelContext* context, size_t i, const int64_t* shape,
                      size_t rank, Value** out) {
  return call<91, Status*>(api, context, i, shape, rank, out);
}
inline void release(const Api* api, ShapeInfo* info) { call<99, void>(api, info); }
inline Status* has_config_entry(const Api* api, const SessionOptions* options, const char* key, int* out) {
  return call<237, Status*>(api, options, key, out);
}
inline Status* config_entry(const Api* api, const SessionOptions* options, const char* key, char* value,
                            size_t* size) {
  return call<238, Status*>(api, options, key, value, size);
}
inline Status* parallel_for(const Api* api, const KernelContext* context, void (*body)(void*, size_t),
                            size_t total, size_t num_batch, void* data) {
  return call<274, Status*>(api, context, body, total, num_batch, data);
}

// OrtCustomOp of version 18.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*least_variadic_inputs)(const CustomOp*);
  int (*are_variadic_inputs_alike)(const CustomOp*);
  int (*least_variadic_outputs)(const CustomOp*);
  int (*are_variadic_outputs_alike)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  size_t (*in_place)(int**, int**);
  void (*release_in_place)(int*, int*);
  size_t (*aliases)(int**, int**);
  void (*release_aliases)(int*, int*);
};

}  // namespace esm2::ort

// Half-precision numbers as bits, and their conversions. To nearest, ties to even; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace esm2 {
// Every instruction set has its own copy, as of everything in kernel.cpp.
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
};
inline float to_float(BFloat16 x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }
inline void from_float(float x, BFloat16& out) {
  const uint32_t bits = bits_of_float(x);
  out.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

struct Float16 {
  uint16_t bits;
};
inline float to_float(Float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const bool is_finite = (x.bits & 0x7c00) != 0x7c00;
  // The exponents differ by 112; a product gets subnormal numbers right too.
  const uint32_t bits = is_finite ? bits_of_float(float_of_bits(magnitude) * 0x1p112f)
                                  : magnitude | 0x7f800000;
  return float_of_bits(bits | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
inline void from_float(float x, Float16& out) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude >= 0x47800000)  // 2^16 and above, infinity, NaN
    half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  else if (magnitude < 0x38800000)  // subnormal: adding 0.5 leaves the digits where they belong
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000;
  else
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  out.bits = static_cast<uint16_t>(sign | half);
}

inline float to_float(float x) { return x; }
inline void from_float(float x, float& out) { out = x; }

}  // namespace
}  // namespace esm2

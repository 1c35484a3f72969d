// Number formats, and what operators check of the tensors that they are given.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

// A loop that the compiler writes out.
#ifdef __clang__
#define EACH(...) _Pragma("unroll") for (__VA_ARGS__)
#else
#define EACH(...) _Pragma("GCC unroll 32") for (__VA_ARGS__)
#endif

struct BFloat16 {
  uint16_t bits;
};

using Format = torch::headeronly::ScalarType;

inline void check(const torch::stable::Tensor& tensor, const char* name, Format format,
                  std::initializer_list<int64_t> sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == format;
  int64_t dimension = 0;
  for (const int64_t size : sizes) fits = fits && tensor.size(dimension++) == size;
  STD_TORCH_CHECK(fits, "the tensor ", name, " has another shape or type than is asked for");
}

inline void check_contiguous(const torch::stable::Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "the tensor ", name, " is not contiguous");
}

inline Format check_format(const torch::stable::Tensor& tensor) {
  const Format format = tensor.scalar_type();
  STD_TORCH_CHECK(format == Format::BFloat16 || format == Format::Float, "rows have to be bfloat16 or float32");
  return format;
}

// Rows of inputs rounded to 8-bit integers, each by its own largest value, and what else products of integers share:
// AVX-512 with VNNI.
#pragma once

#include <immintrin.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "numbers.h"

constexpr int64_t LANES = 16;    // outputs of a panel, and numbers of a vector
constexpr int64_t TOGETHER = 4;  // inputs of an output that lie side by side, for one vpdpbusd
constexpr float LARGEST = 127.0f;
constexpr float TINY = 1e-20f;  // stands for the largest value of a row of zeros

inline __mmask16 lanes_mask(int64_t left) {
  return left >= LANES ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1 << left) - 1);
}

inline __m512 load_lanes(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

inline __m512 load_lanes(const BFloat16* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

inline void store_lanes(float* to, __m512 values, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, values); }

inline void store_lanes(BFloat16* to, __m512 values, __mmask16 mask) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 ordered = _mm512_cmp_ps_mask(values, values, _CMP_ORD_Q);
  const __m512i kept = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc00000), ordered, rounded);
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// vpdpbusd in place: some compilers copy the sums for the intrinsic, and run out of registers.
inline void add_products(__m512i& sums, __m512i weight, __m512i row) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weight), "v"(row));
}

// Adds the products of up to 64 integers with one.
inline int32_t sum_of(const int8_t* integers, int64_t count) {
  const __mmask64 mask = count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
  __m512i sums = _mm512_setzero_si512();
  add_products(sums, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(mask, integers));
  return _mm512_reduce_add_epi32(sums);
}

// One row to integers, filled up with zeros to `width`; returns its largest value, which NaN and infinities make such
// that it is not finite.
template <typename Number>
float round_row(const Number* row, int64_t inputs, int64_t width, int8_t* integers) {
  __m512 most = _mm512_setzero_ps();
  __mmask16 unordered = 0;
  for (int64_t at = 0; at < inputs; at += LANES) {
    const __m512 values = load_lanes(row + at, lanes_mask(inputs - at));
    most = _mm512_max_ps(most, _mm512_abs_ps(values));
    unordered |= _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  }
  const float largest = unordered ? __builtin_nanf("") : std::max(_mm512_reduce_max_ps(most), TINY);
  const __m512 factor = _mm512_set1_ps(1.0f / largest * LARGEST);
  for (int64_t at = 0; at < width; at += LANES) {
    const __m512 values = load_lanes(row + at, lanes_mask(inputs - at));
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values, factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(integers + at), _mm512_cvtepi32_epi8(rounded));
  }
  return largest;
}

// The rows of one call, rounded, with the sums of every `group` integers. A thread keeps the memory for its next call.
struct Rows {
  int64_t width;  // inputs, filled up with zeros to whole panels
  int64_t groups;
  std::vector<int8_t> integers;  // [rows][width]
  std::vector<int32_t> sums;     // [rows][groups]
  std::vector<float> largest;    // [rows]

  template <typename Number>
  void round(const Number* values, int64_t count, int64_t inputs, int64_t filled, int64_t group) {
    width = filled;
    groups = (filled + group - 1) / group;
    integers.resize(count * width);
    sums.resize(count * groups);
    largest.resize(count);
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int8_t* to = integers.data() + row * width;
        largest[row] = round_row(values + row * inputs, inputs, width, to);
        for (int64_t number = 0; number < groups; ++number) {
          int32_t sum = 0;
          for (int64_t at = number * group; at < std::min(width, (number + 1) * group); at += 64)
            sum += sum_of(to + at, std::min(width, (number + 1) * group) - at);
          sums[row * groups + number] = sum;
        }
      }
    };
    torch::stable::parallel_for(0, count, ROWS_OF_A_THREAD, some);
  }

 private:
  static constexpr int64_t ROWS_OF_A_THREAD = 12;
};

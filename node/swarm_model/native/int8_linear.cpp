// Linear layers in 8-bit integers, with AVX-512 VNNI. The format of the weight belongs to int8_linears.py.
//
// The weight lies in panels of 16 outputs: of four inputs after the other, the four bytes of each output, so that one
// 64-byte load meets four broadcast bytes of a row (vpdpbusd: unsigned times signed). Weights are shifted by 128 to be
// unsigned; 128 times the sum of a row's integers is subtracted at the end. A panel is read from memory once for up to
// MOST_ROWS rows, and while it is used the next one is asked for: decoding is as quick as memory gives the weights.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#ifdef __AVX512VNNI__

#include "rounding.h"

namespace {

using torch::stable::Tensor;

constexpr int64_t MOST_ROWS = 12;      // of a tile: with two panels 24 of the 32 registers hold sums
constexpr int64_t ONE_PANEL_ROWS = 8;  // up to which a tile has one panel, so that the weight comes as one stream

struct Weight {
  const uint8_t* panels;
  const float* scales;
  const float* bias;  // may be null
  int64_t outputs;
};

// The products of ROWS rows with PANELS panels, into `sums[ROWS][PANELS * 16]`. `ahead` is what the next tile will
// read, of which the first `asked` cache lines of each panel are asked for. CHAINS sums of each product are kept apart.
template <int ROWS, int PANELS, int CHAINS>
void tile(const uint8_t* panels, const int8_t* integers, int64_t width, int32_t* sums, const uint8_t* ahead,
          int64_t asked) {
  const int64_t panel = width * LANES, steps = width / TOGETHER;
  __m512i products[CHAINS][ROWS][PANELS];
  EACH (auto& chain : products)
    EACH (auto& row : chain)
      EACH (auto& lanes : row) lanes = _mm512_setzero_si512();
  for (int64_t step = 0; step < steps; step += CHAINS) {
    EACH (int chain = 0; chain < CHAINS; ++chain) {
      const int64_t at = step + chain;
      __m512i weight[PANELS];
      EACH (int number = 0; number < PANELS; ++number) {
        weight[number] = _mm512_loadu_si512(panels + number * panel + at * 64);
        if (at < asked) _mm_prefetch(reinterpret_cast<const char*>(ahead + number * panel + at * 64), _MM_HINT_T1);
      }
      EACH (int row = 0; row < ROWS; ++row) {
        int32_t four;
        __builtin_memcpy(&four, integers + row * width + at * TOGETHER, sizeof four);
        const __m512i broadcast = _mm512_set1_epi32(four);
        EACH (int number = 0; number < PANELS; ++number)
          add_products(products[chain][row][number], weight[number], broadcast);
      }
    }
  }
  EACH (int row = 0; row < ROWS; ++row)
    EACH (int number = 0; number < PANELS; ++number) {
      __m512i lanes = products[0][row][number];
      EACH (int chain = 1; chain < CHAINS; ++chain) lanes = _mm512_add_epi32(lanes, products[chain][row][number]);
      _mm512_storeu_si512(sums + (row * PANELS + number) * LANES, lanes);
    }
}

using Tile = void (*)(const uint8_t*, const int8_t*, int64_t, int32_t*, const uint8_t*, int64_t);

// Few rows leave the processor waiting for its own sums.
constexpr int chains(int rows) { return rows <= 3 ? 4 : rows <= 4 ? 2 : 1; }

template <int... COUNTS>
constexpr std::array<Tile, sizeof...(COUNTS)> narrow_tiles(std::integer_sequence<int, COUNTS...>) {
  return {tile<COUNTS + 1, 1, chains(COUNTS + 1)>...};
}

template <int... COUNTS>
constexpr std::array<Tile, sizeof...(COUNTS)> wide_tiles(std::integer_sequence<int, COUNTS...>) {
  return {tile<COUNTS + ONE_PANEL_ROWS, 2, 1>...};
}

constexpr auto NARROW = narrow_tiles(std::make_integer_sequence<int, MOST_ROWS>{});  // of 1 row and more
// Of ONE_PANEL_ROWS and more: the last of several tiles may have one row less than the first.
constexpr auto WIDE = wide_tiles(std::make_integer_sequence<int, MOST_ROWS - ONE_PANEL_ROWS + 1>{});

// Undoes shift and rounding of a row's products with the outputs of `panels` panels from output `first` on.
template <typename Number>
void finish(const int32_t* sums, int64_t panels, const Rows& rows, int64_t row, const Weight& weight, int64_t first,
            Number* outputs) {
  for (int64_t number = 0; number < panels; ++number) {
    const int64_t output = first + number * LANES;
    const __mmask16 mask = lanes_mask(weight.outputs - output);
    const __m512i shift = _mm512_set1_epi32(128 * rows.sums[row]);
    const __m512i product = _mm512_sub_epi32(_mm512_loadu_si512(sums + number * LANES), shift);
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(product), _mm512_maskz_loadu_ps(mask, weight.scales + output));
    value = _mm512_mul_ps(value, _mm512_set1_ps(rows.largest[row]));
    if (weight.bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, weight.bias + output));
    store_lanes(outputs + row * weight.outputs + output, value, mask);
  }
}

template <typename Number>
void multiply(const Rows& rows, int64_t count, const Weight& weight, Number* outputs) {
  const int64_t parts = (count + MOST_ROWS - 1) / MOST_ROWS;  // tiles that share a panel, and asking for the next
  const int64_t together = (count + parts - 1) / parts <= ONE_PANEL_ROWS ? 1 : 2;  // panels
  const int64_t panel = rows.width * LANES, steps = rows.width / TOGETHER, asked = (steps + parts - 1) / parts;
  const auto some = [&](int64_t begin, int64_t end) {
    int32_t sums[MOST_ROWS * 2 * LANES];
    for (int64_t number = begin, panels; number < end; number += panels) {
      panels = std::min(together, end - number);
      const uint8_t* here = weight.panels + number * panel;
      for (int64_t part = 0, row = 0, size; part < parts; ++part, row += size) {
        size = (count - row + parts - part - 1) / (parts - part);
        const Tile kind = panels == 2 ? WIDE[size - ONE_PANEL_ROWS] : NARROW[size - 1];
        kind(here, rows.integers.data() + row * rows.width, rows.width, sums, here + panels * panel + part * asked * 64,
             asked);
        for (int64_t of = 0; of < size; ++of)
          finish(sums + of * panels * LANES, panels, rows, row + of, weight, number * LANES, outputs);
      }
    }
  };
  torch::stable::parallel_for(0, (weight.outputs + LANES - 1) / LANES, LANES, some);
}

template <typename Number>
void linear(const Tensor& inputs, const Tensor& packed, const Weight& weight, Tensor& outputs) {
  const int64_t count = inputs.size(0), width = packed.size(1) * TOGETHER;
  thread_local Rows rows;
  rows.round(static_cast<const Number*>(inputs.const_data_ptr()), count, inputs.size(1), width, width);
  multiply(rows, count, weight, static_cast<Number*>(outputs.mutable_data_ptr()));
}

// outputs[rows, outputs] = rounded inputs[rows, inputs] times the weight packed as [panels, inputs / 4, 64] bytes.
void int8_linear(Tensor outputs, Tensor inputs, Tensor packed, Tensor scales, std::optional<Tensor> bias) {
  const Format format = check_format(inputs);
  const int64_t panels = (scales.size(0) + LANES - 1) / LANES,
                quads = (inputs.size(1) + LANES - 1) / LANES * LANES / TOGETHER;
  check(inputs, "inputs", format, {inputs.size(0), inputs.size(1)});
  check(outputs, "outputs", format, {inputs.size(0), scales.size(0)});
  check(packed, "packed", Format::Byte, {panels, quads, LANES * TOGETHER});
  check(scales, "scales", Format::Float, {scales.size(0)});
  if (bias) check(*bias, "bias", Format::Float, {scales.size(0)});
  for (const Tensor* tensor : {&inputs, &outputs, &packed, &scales}) check_contiguous(*tensor, "given");
  if (bias) check_contiguous(*bias, "bias");
  const Weight weight{static_cast<const uint8_t*>(packed.const_data_ptr()),
                      static_cast<const float*>(scales.const_data_ptr()),
                      bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, scales.size(0)};
  if (inputs.size(0) == 0) return;
  if (format == Format::BFloat16)
    linear<BFloat16>(inputs, packed, weight, outputs);
  else
    linear<float>(inputs, packed, weight, outputs);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(swarm, library) {
  library.def("int8_linear(Tensor(a!) outputs, Tensor inputs, Tensor packed, Tensor scales, Tensor? bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(swarm, CPU, library) { library.impl("int8_linear", TORCH_BOX(&int8_linear)); }

#endif

// Linear layers with 4-bit weights and 8-bit activations, with AVX-512 VNNI. The format belongs to int4_linears.py.
//
// The weight lies in panels of 16 outputs, a panel in groups of inputs, one after the other as they are read: the 16
// outputs' scales and offsets, then their weights, unsigned and two to a byte. The low halves of a 64-byte load are
// four inputs of each output, and so are the high halves, which belong to the second half of the group: each meets four
// broadcast bytes of a row (vpdpbusd: unsigned times signed). A weight stands for (number - 8) * scale + offset, so a
// group adds scale * (products - 8 * sum of the row's integers) + offset * that sum. A panel is read from memory once
// for all rows, and while it is used the next one is asked for.

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

constexpr int64_t LINE = 64;  // bytes of a load; a group's scales and offsets take one
constexpr int64_t INPUTS_OF_A_LINE = 2 * TOGETHER;
constexpr int64_t MIDDLE = 8;      // of 4-bit integers
constexpr int64_t MOST_ROWS = 12;  // of a tile: 24 of the 32 registers hold sums

struct Weight {
  const uint8_t* panels;
  const float* bias;  // may be null
  int64_t outputs;
};

// The outputs of ROWS rows from `first` on with one panel, not yet scaled by the rows' largest values, into
// `outputs[ROWS][16]`. Groups have LINES loads. `ahead` is what is read next, of which the first `asked` groups are
// asked for. CHAINS sums of each product are kept apart.
template <int LINES, int ROWS, int CHAINS>
void tile(const uint8_t* panel, const Rows& rows, int64_t first, float* outputs, const uint8_t* ahead, int64_t asked) {
  constexpr int64_t GROUP = LINES * INPUTS_OF_A_LINE, BYTES = (1 + LINES) * LINE;
  const int8_t* integers = rows.integers.data() + first * rows.width;
  const int32_t* sums = rows.sums.data() + first * rows.groups;
  const __m512i low_halves = _mm512_set1_epi8(15);
  __m512 totals[ROWS];
  EACH (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t group = 0; group < rows.groups; ++group) {
    const uint8_t* here = panel + group * BYTES;
    if (group < asked)
      EACH (int line = 0; line <= LINES; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(ahead + group * BYTES + line * LINE), _MM_HINT_T1);
    __m512i products[CHAINS][ROWS];
    EACH (int row = 0; row < ROWS; ++row) {
      products[0][row] = _mm512_set1_epi32(-MIDDLE * sums[row * rows.groups + group]);
      EACH (int chain = 1; chain < CHAINS; ++chain) products[chain][row] = _mm512_setzero_si512();
    }
    EACH (int line = 0; line < LINES; ++line) {
      const __m512i pairs = _mm512_loadu_si512(here + (1 + line) * LINE);
      EACH (int half = 0; half < 2; ++half) {
        const __m512i weight = _mm512_and_si512(half ? _mm512_srli_epi16(pairs, 4) : pairs, low_halves);
        EACH (int row = 0; row < ROWS; ++row) {
          int32_t four;
          const int64_t at = group * GROUP + half * GROUP / 2 + line * TOGETHER;
          __builtin_memcpy(&four, integers + row * rows.width + at, sizeof four);
          add_products(products[(2 * line + half) % CHAINS][row], weight, _mm512_set1_epi32(four));
        }
      }
    }
    const __m512 scales = load_lanes(reinterpret_cast<const BFloat16*>(here), 0xffff);
    const __m512 offsets = load_lanes(reinterpret_cast<const BFloat16*>(here) + LANES, 0xffff);
    EACH (int row = 0; row < ROWS; ++row) {
      __m512i product = products[0][row];
      EACH (int chain = 1; chain < CHAINS; ++chain) product = _mm512_add_epi32(product, products[chain][row]);
      const __m512 sum = _mm512_set1_ps(static_cast<float>(sums[row * rows.groups + group]));
      totals[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scales, totals[row]);
      totals[row] = _mm512_fmadd_ps(sum, offsets, totals[row]);
    }
  }
  EACH (int row = 0; row < ROWS; ++row) _mm512_storeu_ps(outputs + row * LANES, totals[row]);
}

using Tile = void (*)(const uint8_t*, const Rows&, int64_t, float*, const uint8_t*, int64_t);

// Few rows leave the processor waiting for its own sums.
constexpr int chains(int rows) { return rows <= 3 ? 4 : rows <= 7 ? 2 : 1; }

template <int LINES, int... COUNTS>
constexpr std::array<Tile, sizeof...(COUNTS)> tiles(std::integer_sequence<int, COUNTS...>) {
  return {tile<LINES, COUNTS + 1, chains(COUNTS + 1)>...};
}

template <int LINES>
constexpr auto TILES = tiles<LINES>(std::make_integer_sequence<int, MOST_ROWS>{});  // of 1 row and more

template <int LINES, typename Number>
void multiply(const Rows& rows, int64_t count, const Weight& weight, Number* outputs) {
  const int64_t panel = rows.groups * (1 + LINES) * LINE;
  const int64_t parts = (count + MOST_ROWS - 1) / MOST_ROWS;  // tiles that share a panel, and asking for the next
  const int64_t asked = (rows.groups + parts - 1) / parts;
  const auto some = [&](int64_t begin, int64_t end) {
    float totals[MOST_ROWS * LANES];
    for (int64_t number = begin; number < end; ++number) {
      const uint8_t* here = weight.panels + number * panel;
      const int64_t output = number * LANES;
      const __mmask16 mask = lanes_mask(weight.outputs - output);
      for (int64_t part = 0, first = 0, size; part < parts; ++part, first += size) {
        size = (count - first + parts - part - 1) / (parts - part);
        const uint8_t* ahead = here + panel + part * asked * (1 + LINES) * LINE;
        TILES<LINES>[size - 1](here, rows, first, totals, ahead, asked);
        for (int64_t row = first; row < first + size; ++row) {
          const __m512 scale = _mm512_set1_ps(rows.largest[row] / LARGEST);
          __m512 value = _mm512_mul_ps(_mm512_loadu_ps(totals + (row - first) * LANES), scale);
          if (weight.bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, weight.bias + output));
          store_lanes(outputs + row * weight.outputs + output, value, mask);
        }
      }
    }
  };
  torch::stable::parallel_for(0, (weight.outputs + LANES - 1) / LANES, LANES, some);
}

template <typename Number>
void linear(const Tensor& inputs, int64_t group, const Weight& weight, Tensor& outputs) {
  const int64_t count = inputs.size(0), width = inputs.size(1);
  thread_local Rows rows;
  rows.round(static_cast<const Number*>(inputs.const_data_ptr()), count, width, width, group);
  auto* to = static_cast<Number*>(outputs.mutable_data_ptr());
  if (group == 64)
    multiply<8>(rows, count, weight, to);
  else
    multiply<4>(rows, count, weight, to);
}

// outputs[rows, outputs] = rounded inputs[rows, inputs] times the weight packed as [panels, groups, 64 + 8 * group].
void int4_linear(Tensor outputs, Tensor inputs, Tensor packed, std::optional<Tensor> bias) {
  const Format format = check_format(inputs);
  const int64_t count = outputs.size(1), panels = (count + LANES - 1) / LANES;
  const int64_t groups = packed.dim() == 3 ? packed.size(1) : 0, group = groups ? inputs.size(1) / groups : 0;
  STD_TORCH_CHECK((group == 64 || group == 32) && group * groups == inputs.size(1), "groups have 64 or 32 inputs");
  check(inputs, "inputs", format, {inputs.size(0), inputs.size(1)});
  check(outputs, "outputs", format, {inputs.size(0), count});
  check(packed, "packed", Format::Byte, {panels, groups, LINE + group / INPUTS_OF_A_LINE * LINE});
  if (bias) check(*bias, "bias", Format::Float, {count});
  for (const Tensor* tensor : {&inputs, &outputs, &packed}) check_contiguous(*tensor, "given");
  if (bias) check_contiguous(*bias, "bias");
  const Weight weight{static_cast<const uint8_t*>(packed.const_data_ptr()),
                      bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, count};
  if (inputs.size(0) == 0) return;
  if (format == Format::BFloat16)
    linear<BFloat16>(inputs, group, weight, outputs);
  else
    linear<float>(inputs, group, weight, outputs);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(swarm, library) {
  library.def("int4_linear(Tensor(a!) outputs, Tensor inputs, Tensor packed, Tensor? bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(swarm, CPU, library) { library.impl("int4_linear", TORCH_BOX(&int4_linear)); }

#endif

// Attention of single tokens over KV pages, in vectors of any CPU. Called by native_attention.py.
//
// Each token of the step is attended on its own, for the query heads that share keys together: scores over its
// session's tokens page by page, their softmax, then the values' sum. All sums are in float32.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "numbers.h"

namespace {

using torch::stable::Tensor;

// Vectors are as wide as the registers, and the sums of HEADS query heads times VECTORS of a value fit into these.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr int VECTORS = 4;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
constexpr int VECTORS = 2;
#else
constexpr int64_t LANES = 4;
constexpr int VECTORS = 2;
#endif
constexpr int HEADS = 4;
constexpr int64_t WORTH_A_THREAD = 4096;  // tokens read

using Lanes = float __attribute__((vector_size(LANES * 4)));
using Bits = uint32_t __attribute__((vector_size(LANES * 4)));
using Halves = uint16_t __attribute__((vector_size(LANES * 2)));

inline Lanes load(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline Lanes load(const BFloat16* from) {
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof halves);
  return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float* to, Lanes lanes) { __builtin_memcpy(to, &lanes, sizeof lanes); }

inline void store(BFloat16* to, Lanes lanes) {
  const Bits bits = reinterpret_cast<Bits>(lanes);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(lanes == lanes ? rounded : Bits{} + 0x7fc0, Halves);
  __builtin_memcpy(to, &halves, sizeof halves);
}

template <typename Number>
inline void prefetch(const Number* row, int64_t size) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < size * static_cast<int64_t>(sizeof(Number)); at += 64) __builtin_prefetch(bytes + at);
}

inline float sum(Lanes lanes) {
  float parts[LANES];
  store(parts, lanes);
  EACH (int64_t half = LANES / 2; half > 0; half /= 2)
    EACH (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  return parts[0];
}

// The sums of several vectors' lanes, `stride` numbers from one another.
template <int COUNT>
inline void sums_of(const Lanes* lanes, float* to, int64_t stride) {
#ifdef __AVX__
  if constexpr (COUNT == 4) {  // halves of several vectors at once: a third of the instructions
#ifdef __AVX512F__
    const __m512 one = reinterpret_cast<__m512>(lanes[0]), two = reinterpret_cast<__m512>(lanes[1]);
    const __m512 three = reinterpret_cast<__m512>(lanes[2]), four = reinterpret_cast<__m512>(lanes[3]);
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(one, two), _mm512_unpackhi_ps(one, two));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(three, four), _mm512_unpackhi_ps(three, four));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    const __m256 low = _mm256_hadd_ps(reinterpret_cast<__m256>(lanes[0]), reinterpret_cast<__m256>(lanes[1]));
    const __m256 high = _mm256_hadd_ps(reinterpret_cast<__m256>(lanes[2]), reinterpret_cast<__m256>(lanes[3]));
    const __m256 eight = _mm256_hadd_ps(low, high);
#endif
    float sums[4];
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
    EACH (int number = 0; number < COUNT; ++number) to[number * stride] = sums[number];
    return;
  }
#endif
  EACH (int number = 0; number < COUNT; ++number) to[number * stride] = sum(lanes[number]);
}

// e to the power of values that are not above 0, with an error of 2 units in the last place (Cephes, expf.c).
inline Lanes exponential(Lanes values) {
  const Lanes zero{}, lowest = zero - 87.0f, shift = zero + 12582912.0f;  // 1.5 * 2**23: rounds to integers
  values = values < lowest ? lowest : values;
  const Lanes shifted = values * 1.44269504f + shift;
  const Lanes rounded = shifted - shift;
  const Lanes rest = values - rounded * 0.693359375f + rounded * 2.12194440e-4f;
  Lanes power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  return reinterpret_cast<Lanes>(reinterpret_cast<Bits>(power) + (reinterpret_cast<Bits>(shifted) << 23));
}

// Turns scores, filled up to whole vectors, into shares whose sum is not divided out; returns that sum.
inline float softmax(float* scores, int64_t count) {
  const int64_t whole = (count + LANES - 1) / LANES * LANES;
  float most = scores[0];
  Lanes mosts = Lanes{} + most;
  std::fill(scores + count, scores + whole, most);
  for (int64_t at = 0; at < whole; at += LANES) {
    const Lanes some = load(scores + at);
    mosts = some > mosts ? some : mosts;
  }
  EACH (int lane = 0; lane < LANES; ++lane) most = mosts[lane] > most ? mosts[lane] : most;
  Lanes sums{};
  for (int64_t at = 0; at < whole; at += LANES) {
    const Lanes shares = exponential(load(scores + at) - most);
    store(scores + at, shares);
    if (at + LANES <= count) sums += shares;
  }
  float total = sum(sums);
  for (int64_t at = count / LANES * LANES; at < count; ++at) total += scores[at];
  return total;
}

// What all tokens of a step share.
template <typename Number>
struct Pool {
  const Number *keys, *values;     // of the first KV head
  int64_t slot_keys, slot_values;  // numbers from one slot to the next
  int64_t next_keys;               // numbers from one KV head to the next
  int64_t key_size, value_size;
  int64_t page_size;
};

// The tokens [first, end) of a session, as runs of slots that follow one another.
template <typename Use>
inline void by_page(const int32_t* pages, int64_t page_size, int64_t first, int64_t end, const Use& use) {
  for (int64_t token = first; token < end;) {
    const int64_t place = token % page_size, count = std::min(page_size - place, end - token);
    use(pages[token / page_size] * page_size + place, count, token - first);
    token += count;
  }
}

// COUNT query heads of one token, whose queries are scaled floats side by side, over one KV head.
template <int COUNT, typename Number>
void attend(const Pool<Number>& pool, const int32_t* pages, int64_t first, int64_t end, const float* queries,
            float* scores, Number* outputs) {
  const int64_t stride = (end - first + LANES - 1) / LANES * LANES;
  by_page(pages, pool.page_size, first, end, [&](int64_t slot, int64_t count, int64_t at) {
    for (int64_t token = 0; token < count; ++token) {
      const Number* key = pool.keys + (slot + token) * pool.slot_keys;
      prefetch(pool.values + (slot + token) * pool.slot_values, pool.value_size);
      Lanes sums[COUNT]{};
      for (int64_t place = 0; place < pool.key_size; place += LANES) {
        const Lanes part = load(key + place);
        EACH (int head = 0; head < COUNT; ++head) sums[head] += load(queries + head * pool.key_size + place) * part;
      }
      sums_of<COUNT>(sums, scores + at + token, stride);
    }
  });
  float totals[COUNT];
  for (int head = 0; head < COUNT; ++head) totals[head] = softmax(scores + head * stride, end - first);
  const auto add_up = [&]<int WIDTH>(int64_t place) {
    Lanes sums[COUNT][WIDTH]{};
    by_page(pages, pool.page_size, first, end, [&](int64_t slot, int64_t count, int64_t at) {
      for (int64_t token = 0; token < count; ++token) {
        const Number* value = pool.values + (slot + token) * pool.slot_values + place;
        if (place == 0) prefetch(pool.keys + pool.next_keys + (slot + token) * pool.slot_keys, pool.key_size);
        Lanes parts[WIDTH];
        EACH (int number = 0; number < WIDTH; ++number) parts[number] = load(value + number * LANES);
        EACH (int head = 0; head < COUNT; ++head) {
          const float share = scores[head * stride + at + token];
          EACH (int number = 0; number < WIDTH; ++number) sums[head][number] += share * parts[number];
        }
      }
    });
    EACH (int head = 0; head < COUNT; ++head)
      EACH (int number = 0; number < WIDTH; ++number)
        store(outputs + head * pool.value_size + place + number * LANES, sums[head][number] / totals[head]);
  };
  int64_t place = 0;
  for (; place + VECTORS * LANES <= pool.value_size; place += VECTORS * LANES)
    add_up.template operator()<VECTORS>(place);
  for (; place < pool.value_size; place += LANES) add_up.template operator()<1>(place);
}

template <typename Number>
void attend_all(Tensor& outputs, const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& tokens,
                const Tensor& pages, int64_t page_size, double scale, int64_t window) {
  const int64_t heads = query.size(1), kv_heads = keys.size(1), group = heads / kv_heads, size = query.size(2);
  const auto* table = static_cast<const int32_t*>(tokens.const_data_ptr());
  const auto* page_table = static_cast<const int32_t*>(pages.const_data_ptr());
  const auto* queries = static_cast<const Number*>(query.const_data_ptr());
  const auto* all_keys = static_cast<const Number*>(keys.const_data_ptr());
  const auto* all_values = static_cast<const Number*>(values.const_data_ptr());
  auto* attended = static_cast<Number*>(outputs.mutable_data_ptr());
  const int64_t row_stride = query.stride(0), head_stride = query.stride(1), width = pages.size(1);
  const int64_t key_head = keys.stride(1), value_head = values.stride(1), value_size = values.size(2);
  const int64_t slot_keys = keys.stride(0), slot_values = values.stride(0), count = tokens.size(0);
  int64_t longest = 0;
  for (int64_t number = 0; number < count; ++number) longest = std::max<int64_t>(longest, table[number * 2 + 1]);
  torch::stable::parallel_for(
      0, count * kv_heads, 1 + WORTH_A_THREAD / std::max<int64_t>(1, longest), [&](int64_t begin, int64_t end) {
        thread_local std::vector<float> scores, scaled;
        scores.resize((longest + LANES) * HEADS);
        scaled.resize(HEADS * size);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task / kv_heads, kv_head = task % kv_heads;
          const int64_t session = table[row * 2], length = table[row * 2 + 1];
          const int64_t first = window > 0 ? std::max<int64_t>(0, length - window) : 0;
          const Pool<Number> pool{all_keys + kv_head * key_head,
                                  all_values + kv_head * value_head,
                                  slot_keys,
                                  slot_values,
                                  kv_head + 1 < kv_heads ? key_head : 0,
                                  size,
                                  value_size,
                                  page_size};
          for (int64_t head = kv_head * group, left = group; left > 0;) {
            const int64_t some = left >= HEADS ? HEADS : left >= 2 ? 2 : 1;
            for (int64_t number = 0; number < some; ++number)
              for (int64_t place = 0; place < size; place += LANES)
                store(scaled.data() + number * size + place,
                      load(queries + row * row_stride + (head + number) * head_stride + place) *
                          static_cast<float>(scale));
            Number* to = attended + (row * heads + head) * value_size;
            const int32_t* of_session = page_table + session * width;
            const auto kind = some == HEADS ? attend<HEADS, Number> : some == 2 ? attend<2, Number> : attend<1, Number>;
            kind(pool, of_session, first, length, scaled.data(), scores.data(), to);
            head += some;
            left -= some;
          }
        }
      });
}

// Whatever the tables say has to lie in the pool.
void check_tables(const Tensor& tokens, const Tensor& pages, int64_t slots, int64_t page_size) {
  const auto* table = static_cast<const int32_t*>(tokens.const_data_ptr());
  const auto* page_table = static_cast<const int32_t*>(pages.const_data_ptr());
  bool inside = page_size > 0;
  for (int64_t row = 0; inside && row < tokens.size(0); ++row) {
    const int64_t session = table[row * 2], length = table[row * 2 + 1];
    inside = session >= 0 && session < pages.size(0) && length > 0 && length <= pages.size(1) * page_size;
    for (int64_t at = 0; inside && at * page_size < length; ++at) {
      const int64_t page = page_table[session * pages.size(1) + at];
      inside = page >= 0 && (page + 1) * page_size <= slots;
    }
  }
  STD_TORCH_CHECK(inside, "a session's tokens lie outside the pool");
}

// outputs[rows, heads, value size]: each row of query[rows, heads, size] attends the first `length` tokens of a
// session, as tokens[rows] = (session, length) says, or the last `window` of them; pages[session] lists its pages.
void paged_attention(Tensor outputs, Tensor query, Tensor keys, Tensor values, Tensor tokens, Tensor pages,
                     int64_t page_size, double scale, int64_t window) {
  const Format format = check_format(query);
  const int64_t rows = query.size(0), heads = query.size(1), size = query.size(2), slots = keys.size(0);
  check(query, "query", format, {rows, heads, size});
  check(keys, "keys", format, {slots, keys.size(1), size});
  check(values, "values", format, {slots, keys.size(1), values.size(2)});
  check(outputs, "outputs", format, {rows, heads, values.size(2)});
  check(tokens, "tokens", Format::Int, {rows, 2});
  check(pages, "pages", Format::Int, {pages.size(0), pages.size(1)});
  for (const Tensor* tensor : {&outputs, &tokens, &pages}) check_contiguous(*tensor, "given");
  STD_TORCH_CHECK(heads % keys.size(1) == 0 && size % LANES == 0 && values.size(2) % LANES == 0, "heads do not fit");
  STD_TORCH_CHECK(query.stride(2) == 1 && keys.stride(2) == 1 && values.stride(2) == 1,
                  "heads have to lie in one piece");
  check_tables(tokens, pages, slots, page_size);
  if (format == Format::BFloat16)
    attend_all<BFloat16>(outputs, query, keys, values, tokens, pages, page_size, scale, window);
  else
    attend_all<float>(outputs, query, keys, values, tokens, pages, page_size, scale, window);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(swarm, library) {
  library.def(
      "paged_attention(Tensor(a!) outputs, Tensor query, Tensor keys, Tensor values, Tensor tokens, Tensor pages, "
      "int page_size, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(swarm, CPU, library) { library.impl("paged_attention", TORCH_BOX(&paged_attention)); }

// SPDX-License-Identifier: MIT
// Convolutions by the single kept weights of their mask: see sparse_ext/kernels/element.
//
// Built for one set of vector instructions (AVX2 with FMA, AVX-512, AVX-512 with BF16) as a library
// of plain C functions, which needs nothing but the C++ runtime.

#include "layout.h"
#include "lists.h"
#include "norm.h"
#include "passes.h"

namespace {

template <class T>
void weight_sums(const Geometry* g, const Lists* lists, const typename T::S* source,
    const typename T::S* grads, const Entry* entries, int64_t count, float* sums) {
  Pass<T>(*g, *lists).dots(source, grads, entries, count, sums);
}

} // namespace

extern "C" {

// The GOMP_parallel whose threads are used from now on in this process; null: threads of its own.
void element_team(void* parallel) {
  Team::torchs() = {reinterpret_cast<Team::Parallel>(parallel), getpid()};
}

// 0: float32 only; 1: bfloat16 too.
int64_t element_bfloat16() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

int64_t element_lanes() { return L; }

// A number that another content of the same bytes does not have, but by a chance of 1 in 2^64.
uint64_t element_fingerprint(const uint8_t* bytes, int64_t n) {
  constexpr uint64_t ODD = 0x9e3779b97f4a7c15u;
  uint64_t h[4] = {1, 2, 3, 4}, word[4] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    std::memcpy(word, bytes + i, 32);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) h[k] = (h[k] ^ word[k]) * ODD, h[k] ^= h[k] >> 29;
  }
  uint64_t rest[4] = {};
  std::memcpy(rest, bytes + i, n - i);
  uint64_t all = n;
  for (int k = 0; k < 4; ++k) all = (all ^ h[k] ^ (rest[k] * ODD)) * ODD, all ^= all >> 31;
  return all;
}

int64_t element_list(const Geometry* g, const Kernel* k, const uint8_t* mask, const int64_t* slot,
    int64_t size, int64_t keep_empty, int32_t* offsets, int32_t* at, Segment* segments,
    int32_t* ranges) {
  return list_weights(*g, *k, mask, slot, size, keep_empty != 0, offsets, at, segments, ranges);
}

// values[i] = weight[kept[i]], of which `kept` are ascending; half: rounded to bfloat16, as bits.
void element_gather(const float* weight, const int32_t* kept, int64_t count, int64_t half,
    uint32_t* values, int64_t threads) {
  each_part(count, threads, [&](int64_t i) {
    if (half) values[i] = rounded(weight[kept[i]]);
    else std::memcpy(values + i, weight + kept[i], sizeof(float));
  });
}

// entries[i] = (offsets[i], values[at[i]])
void element_fill(const float* values, const int32_t* offsets, const int32_t* at, int64_t count,
    Entry* entries, int64_t threads) {
  each_part(count, threads, [&](int64_t i) { entries[i] = {offsets[i], values[at[i]]}; });
}

void element_pass(const Geometry* g, const Lists* lists, const float* source, const Entry* entries,
    float* target, const float* scale, const float* bias, const float* residual, int64_t relu) {
  Pass<Float>(*g, *lists).run(source, entries, target, {scale, bias, residual, relu != 0});
}

#ifdef __AVX512F__

// The input gradient to `target`, and with the layer's inputs sums as `element_sums` has them.
void element_both(const Geometry* g, const Lists* lists, const float* source, const Entry* entries,
    float* target, const float* further, const float* inputs, int64_t count, float* sums) {
  Pass<Float>(*g, *lists).both(source, entries, target, {nullptr, nullptr, further}, inputs, count,
      sums);
}

#endif

int64_t element_slots(const Geometry* g) {
  return std::max<int64_t>(1, std::min(g->threads, g->groups * g->tiles()));
}

void element_sums(const Geometry* g, const Lists* lists, const float* source, const float* grads,
    const Entry* entries, int64_t count, float* sums) {
  weight_sums<Float>(g, lists, source, grads, entries, count, sums);
}

// values[at[i]] += the sum of sums[slot][i], where there is one: at[i] >= 0.
void element_collect(const float* sums, int64_t slots, const int32_t* at, int64_t count,
    float* values, int64_t threads) {
  each_part(count, threads, [&](int64_t i) {
    float sum = sums[i];
    for (int64_t slot = 1; slot < slots; ++slot) sum += sums[slot * count + i];
    if (at[i] >= 0) values[at[i]] += sum;
  });
}

// gradient[kept[i]] = values[i], and zero elsewhere.
void element_spread(const float* values, const int32_t* kept, int64_t count, int64_t n,
    float* gradient, int64_t threads) {
  constexpr int64_t PART = 4096; // stays in L1 between the zeros and the values
  in_parts(ceil_div(n, PART), threads, [&](int64_t first, int64_t last, int64_t) {
    int64_t i = std::lower_bound(kept, kept + count, first * PART) - kept;
    for (int64_t begin = first * PART; begin < std::min(n, last * PART); begin += PART) {
      const int64_t end = std::min(n, begin + PART);
      std::fill(gradient + begin, gradient + end, 0.f);
      for (; i < count && kept[i] < end; ++i) gradient[kept[i]] = values[i];
    }
  });
}

#ifdef __AVX512BF16__

// Segments and entries of pairs of weights; returns how many entries there are. at: two of each.
int64_t element_pairs(const Segment* segments, int64_t n, const int32_t* offsets, const int32_t* at,
    Segment* paired, int32_t* first, int32_t* second, int32_t* both) {
  int32_t total = 0;
  for (int64_t s = 0; s < n; ++s) {
    const Segment& from = segments[s];
    paired[s] = {from.target, total, (from.count + 1) / 2, from.flags};
    for (int32_t i = 0; i < from.count; i += 2, ++total) {
      const int32_t a = from.begin + i, b = i + 1 < from.count ? a + 1 : a;
      first[total] = offsets[a];
      second[total] = offsets[b];
      both[2 * total] = at[a];
      both[2 * total + 1] = b == a ? -1 : at[b]; // none
    }
  }
  return total;
}

void element_fill_pairs(const uint32_t* values, const int32_t* first, const int32_t* second,
    const int32_t* both, int64_t count, PairEntry* entries, int64_t threads) {
  each_part(count, threads, [&](int64_t i) {
    const uint32_t high = both[2 * i + 1] < 0 ? 0 : values[both[2 * i + 1]];
    entries[i] = {first[i], second[i], values[both[2 * i]] | high << 16};
  });
}

void element_pass_half(const Geometry* g, const Lists* lists, const uint16_t* source,
    const PairEntry* entries, uint16_t* target, const float* scale, const float* bias,
    const uint16_t* residual, int64_t relu) {
  Pass<Half>(*g, *lists).run(source, entries, target, {scale, bias, residual, relu != 0});
}

void element_both_half(const Geometry* g, const Lists* lists, const uint16_t* source,
    const PairEntry* entries, uint16_t* target, const uint16_t* further, const uint16_t* inputs,
    int64_t count, float* sums) {
  Pass<Half>(*g, *lists).both(source, entries, target, {nullptr, nullptr, further}, inputs, count,
      sums);
}

void element_sums_half(const Geometry* g, const Lists* lists, const uint16_t* source,
    const uint16_t* grads, const Entry* entries, int64_t count, float* sums) {
  weight_sums<Half>(g, lists, source, grads, entries, count, sums);
}

#endif

// half: whether activations are bfloat16 here, everything else is float32
void element_norm(int64_t half, const void* x, const void* residual, const float* gamma,
    const float* beta, double eps, int64_t channels, int64_t n, int64_t relu, void* y, float* stats,
    float* mean_of, float* var_of, double momentum, int64_t threads) {
  if (half)
    norm_forward((const uint16_t*)x, (const uint16_t*)residual, gamma, beta, eps, channels, n,
        relu != 0, (uint16_t*)y, stats, mean_of, var_of, momentum, threads);
  else
    norm_forward((const float*)x, (const float*)residual, gamma, beta, eps, channels, n, relu != 0,
        (float*)y, stats, mean_of, var_of, momentum, threads);
}

void element_norm_backward(int64_t half, const void* dy, const void* y, const void* x,
    const float* stats, int64_t channels, int64_t n, int64_t relu, void* to_x, void* to_residual,
    float* to_gamma, float* to_beta, int64_t threads) {
  if (half)
    norm_backward((const uint16_t*)dy, (const uint16_t*)y, (const uint16_t*)x, stats, channels, n,
        relu != 0, (uint16_t*)to_x, (uint16_t*)to_residual, to_gamma, to_beta, threads);
  else
    norm_backward((const float*)dy, (const float*)y, (const float*)x, stats, channels, n, relu != 0,
        (float*)to_x, (float*)to_residual, to_gamma, to_beta, threads);
}

void element_affine(int64_t half, const void* x, const void* residual, const float* scale,
    const float* shift, int64_t channels, int64_t n, int64_t relu, void* y, int64_t threads) {
  in_turns(channels, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      if (half)
        affine((const uint16_t*)x + c * n, residual ? (const uint16_t*)residual + c * n : nullptr, n,
            scale[c], shift[c], relu != 0, false, (uint16_t*)y + c * n);
      else
        affine((const float*)x + c * n, residual ? (const float*)residual + c * n : nullptr, n,
            scale[c], shift[c], relu != 0, streamed((float*)y, channels, n), (float*)y + c * n);
    }
  });
}

void element_to_lanes(int64_t half, const Images* m, const void* from, void* to, int64_t threads) {
  if (half) to_lanes(*m, (const uint16_t*)from, (uint16_t*)to, threads);
  else to_lanes(*m, (const float*)from, (float*)to, threads);
}

void element_from_lanes(int64_t half, const Images* m, const void* from, void* to, int64_t threads) {
  if (half) from_lanes(*m, (const uint16_t*)from, (uint16_t*)to, threads);
  else from_lanes(*m, (const float*)from, (float*)to, threads);
}

} // extern "C"

// SPDX-License-Identifier: MIT
// Input gradient and weight gradient at once. Both multiply the same gradients of the output, so one
// load (and one packing of them, one list of weights) serves two products.
#pragma once

#include "dots.h"

namespace {

struct Inputs { // of the layer, laid out as the target: their products with the source are summed
  const char* at; // of the tile's first pixel
  const int64_t* where; // bytes from there to a target's plane
  int64_t row, col; // bytes
  float* sums; // of each weight
};

#ifdef __AVX512F__

// A target's inputs: in registers, or where registers are needed for sums in consecutive memory.
template <int R, int W, bool IN_REGISTERS>
class Own {
 public:
  ALWAYS_INLINE Own(const Inputs& x, int64_t target) {
    const char* row = x.at + x.where[target];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const char* here = row;
#pragma GCC unroll 32
      for (int c = 0; c < W; ++c) {
        asm("" : "+r"(here));
        vectors_[r * W + c] = get((const float*)here);
        here += x.col;
      }
      row += x.row;
    }
    if (!IN_REGISTERS) asm volatile("" : "+m"(vectors_));
  }
  ALWAYS_INLINE V operator[](int i) const { return vectors_[i]; }

 private:
  V vectors_[R * W];
};

template <int R, int W>
void sum_both(const Products& p, const Inputs& inputs, const Entry* entries) {
  constexpr int K = R * W < 3 ? R * W : 3; // chains
  const int64_t prefetches = p.prefetches();
  const char* const source = p.source; // read once: a vector that is stored might be anything
  const int64_t source_row = p.source_row;
  Totals weights(p.count ? inputs.sums + p.segments[0].begin : nullptr);
  for (int64_t i = 0; i < p.count; ++i) {
    const Segment s = p.segments[i];
    p.ahead->some(prefetches);
    float* own = (float*)p.sums + s.target * (R * W * L);
    V v[R][W];
    begin_sums(s, own, v);
    if (!s.count) { // the inputs of such a plane may be missing
      end_sums(p, s, own, v);
      continue;
    }
    const Own<R, W, true> x(inputs, s.target);
    const Entry *e = entries + s.begin, *end = e + s.count;
    for (; e < end; ++e) {
      const char* q = source + e->offset;
      const V w = all(e->value);
      V t[K];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        asm("" : "+r"(q));
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          const int k = r * W + c;
          V grad = get((const float*)q + c * L);
          asm("" : "+v"(grad)); // one load
          v[r][c] = fma(w, grad, v[r][c]);
          t[k % K] = k < K ? mul(grad, x[k]) : fma(grad, x[k], t[k % K]);
        }
        q += source_row;
      }
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) t[0] = add(t[0], t[k]);
      weights.add_to_next(t[0]);
    }
    end_sums(p, s, own, v);
    weights.flush();
  }
  weights.end();
}

#endif
#ifdef __AVX512BF16__

// Two sums for each entry.
template <int R, int W>
void sum_both_pairs(const Products& p, const Inputs& inputs, const PairEntry* entries) {
  constexpr int K = R * W > 10 ? 1 : R * W > 1 ? 2 : 1; // chains
  const int64_t prefetches = p.prefetches();
  const char* const source = p.source; // read once: a vector that is stored might be anything
  const int64_t source_row = p.source_row;
  Totals weights(p.count ? inputs.sums + 2 * p.segments[0].begin : nullptr);
  for (int64_t i = 0; i < p.count; ++i) {
    const Segment s = p.segments[i];
    p.ahead->some(prefetches);
    float* own = (float*)p.sums + s.target * (R * W * 2 * L);
    V v[R][W][2];
    begin_sums(s, own, v);
    if (!s.count) { // the inputs of such a plane may be missing
      end_sums(p, s, own, v);
      continue;
    }
    const Own<R, W, 3 * R * W <= 24> x(inputs, s.target);
    const PairEntry *e = entries + s.begin, *end = e + s.count;
    for (; e < end; ++e) {
      const char *q = source + e->offset, *other = source + e->second;
      const __m512bh w = (__m512bh)_mm512_set1_epi32(e->values);
      V t[2][K];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        asm("" : "+r"(q), "+r"(other));
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          const int k = r * W + c;
          __m512i a = _mm512_loadu_si512(q + c * 64), b = _mm512_loadu_si512(other + c * 64);
          asm("" : "+v"(a), "+v"(b)); // one load each
          v[r][c][0] = _mm512_dpbf16_ps(v[r][c][0], (__m512bh)_mm512_unpacklo_epi16(a, b), w);
          v[r][c][1] = _mm512_dpbf16_ps(v[r][c][1], (__m512bh)_mm512_unpackhi_epi16(a, b), w);
          const __m512bh own_x = (__m512bh)x[k];
          t[0][k % K] = _mm512_dpbf16_ps(k < K ? zero() : t[0][k % K], (__m512bh)a, own_x);
          t[1][k % K] = _mm512_dpbf16_ps(k < K ? zero() : t[1][k % K], (__m512bh)b, own_x);
        }
        q += source_row;
        other += source_row;
      }
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) weights.add_to_next(K == 2 ? add(t[j][0], t[j][1]) : t[j][0]);
    }
    end_sums(p, s, own, v);
    weights.flush();
  }
  weights.end();
}

#endif

} // namespace

// SPDX-License-Identifier: MIT
// Sums of kept weights times source: the forward pass and the input gradient.
#pragma once

#include "products.h"

namespace {

template <int R, int W>
void sum_up(const Products& p, const Entry* entries) {
  constexpr int K = R * W <= 2 ? 4 : R * W <= 4 ? 2 : 1; // chains, against the latency of a sum
  const int64_t prefetches = p.prefetches();
  const char* const source = p.source; // read once: a vector that is stored might be anything
  const int64_t source_row = p.source_row;
  for (int64_t i = 0; i < p.count; ++i) {
    const Segment s = p.segments[i];
    p.ahead->some(prefetches);
    float* own = (float*)p.sums + s.target * (R * W * L);
    V v[K][R][W];
    begin_sums(s, own, v[0]);
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) v[k][r][c] = zero();
    const Entry *e = entries + s.begin, *end = e + s.count;
    for (; e + K <= end; e += K) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const char* q = source + e[k].offset;
        const V w = all(e[k].value);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          asm("" : "+r"(q)); // or the compiler keeps the address of each pixel in a register
#pragma GCC unroll 32
          for (int c = 0; c < W; ++c) v[k][r][c] = fma(w, get((const float*)q + c * L), v[k][r][c]);
          q += source_row;
        }
      }
    }
    for (; K > 1 && e < end; ++e) {
      const char* q = source + e->offset;
      const V w = all(e->value);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, q += source_row)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) v[0][r][c] = fma(w, get((const float*)q + c * L), v[0][r][c]);
    }
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) v[0][r][c] = add(v[0][r][c], v[k][r][c]);
    end_sums(p, s, own, v[0]);
  }
}

#ifdef __AVX512BF16__

template <int R, int W>
void sum_up_pairs(const Products& p, const PairEntry* entries) {
  constexpr int K = R * W == 1 ? 4 : R * W == 2 ? 2 : 1;
  const int64_t prefetches = p.prefetches();
  const char* const source = p.source; // read once: a vector that is stored might be anything
  const int64_t source_row = p.source_row;
  for (int64_t i = 0; i < p.count; ++i) {
    const Segment s = p.segments[i];
    p.ahead->some(prefetches);
    float* own = (float*)p.sums + s.target * (R * W * 2 * L);
    V v[K][R][W][2];
    begin_sums(s, own, v[0]);
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) v[k][r][c][h] = zero();
    const PairEntry *e = entries + s.begin, *end = e + s.count;
    const auto one = [&](V (&sum)[R][W][2], const PairEntry& entry) __attribute__((always_inline)) {
      const char *x = source + entry.offset, *y = source + entry.second;
      const __m512bh w = (__m512bh)_mm512_set1_epi32(entry.values);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        asm("" : "+r"(x), "+r"(y));
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          __m512i a = _mm512_loadu_si512(x + c * 64), b = _mm512_loadu_si512(y + c * 64);
          asm("" : "+v"(b)); // one load: a memory operand would be loaded by each shuffle
          sum[r][c][0] = _mm512_dpbf16_ps(sum[r][c][0], (__m512bh)_mm512_unpacklo_epi16(a, b), w);
          sum[r][c][1] = _mm512_dpbf16_ps(sum[r][c][1], (__m512bh)_mm512_unpackhi_epi16(a, b), w);
        }
        x += source_row;
        y += source_row;
      }
    };
    for (; e + K <= end; e += K) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) one(v[k], e[k]);
    }
    for (; K > 1 && e < end; ++e) one(v[0], *e);
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) v[0][r][c][h] = add(v[0][r][c][h], v[k][r][c][h]);
    end_sums(p, s, own, v[0]);
  }
}

#endif

} // namespace

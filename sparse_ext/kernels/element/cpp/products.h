// SPDX-License-Identifier: MIT
// What products of kept weights with the packed source of one tile share: sums in registers.
#pragma once

#include "geometry.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

enum : int32_t { FIRST = 1, LAST = 2 }; // of the segments of a target

struct Segment { // the kept weights of one target in one block of source channels
  int32_t target, begin, count, flags;
};

struct Epilogue { // what becomes of finished sums: sum * scale + bias + residual, rectified
  const float* scale = nullptr; // of each target of the block
  const float* bias = nullptr; // likewise
  const void* residual = nullptr; // laid out as the target
  bool relu = false;

  bool idle() const { return !scale && !bias && !residual && !relu; }
};

struct Products {
  const Segment* segments;
  int64_t count;
  const char* source;
  int64_t source_row; // bytes
  char* sums; // of all targets of the block, between two blocks of the source
  char* target; // of the tile's first pixel; null: finished sums stay in `sums`
  const int64_t* where; // bytes from there to a target's plane
  int64_t target_row, target_col; // bytes
  bool streams; // past the caches
  Epilogue after;
  Ahead* ahead;

  int64_t prefetches() const { return count ? ceil_div(ahead->count - ahead->done, count) : 0; }
};

struct Entry { // a kept weight
  int32_t offset; // bytes in the packed source
  float value;
};

// The sums of R x W vectors of a target: from the block before, or zero.
template <int R, int W>
ALWAYS_INLINE void begin_sums(const Segment& s, const float* own, V (&v)[R][W]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
    for (int c = 0; c < W; ++c) v[r][c] = (s.flags & FIRST) ? zero() : get(own + (r * W + c) * L);
}

// To the next block, or to where they belong.
template <int R, int W>
ALWAYS_INLINE void end_sums(const Products& p, const Segment& s, float* own, V (&v)[R][W]) {
  if (!(s.flags & LAST) || !p.target) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
      for (int c = 0; c < W; ++c) put(own + (r * W + c) * L, v[r][c]);
    return;
  }
  if (!p.after.idle()) {
    const V scale = all(p.after.scale ? p.after.scale[s.target] : 1);
    const V bias = all(p.after.bias ? p.after.bias[s.target] : 0);
    const char* q = (const char*)p.after.residual;
    if (q) q += p.where[s.target];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const char* here = q;
#pragma GCC unroll 32
      for (int c = 0; c < W; ++c) {
        asm("" : "+r"(here));
        v[r][c] = fma(v[r][c], scale, bias);
        if (here) v[r][c] = add(v[r][c], get((const float*)here)), here += p.target_col;
        if (p.after.relu) v[r][c] = rectified(v[r][c]);
      }
      if (q) q += p.target_row;
    }
  }
  char* to = p.target + p.where[s.target];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    char* q = to;
#pragma GCC unroll 32
    for (int c = 0; c < W; ++c) {
      asm("" : "+r"(q));
      if (p.streams) stream((float*)q, v[r][c]);
      else put((float*)q, v[r][c]);
      q += p.target_col;
    }
    to += p.target_row;
  }
}

#ifdef __AVX512BF16__

struct PairEntry { // two kept weights of a target
  int32_t offset, second; // bytes in the packed source
  uint32_t values;
};

// The sums of 32 images: those of lanes 0-3 of every 8 in the first vector, 4-7 in the second.
template <int R, int W>
ALWAYS_INLINE void begin_sums(const Segment& s, const float* own, V (&v)[R][W][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
    for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h)
        v[r][c][h] = (s.flags & FIRST) ? zero() : get(own + ((r * W + c) * 2 + h) * L);
}

template <int R, int W>
ALWAYS_INLINE void end_sums(const Products& p, const Segment& s, float* own, V (&v)[R][W][2]) {
      if (!(s.flags & LAST)) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
          for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) put(own + ((r * W + c) * 2 + h) * L, v[r][c][h]);
        return;
      }
      if (!p.target) { // float32 in the order of the images
        const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
          for (int c = 0; c < W; ++c) {
            const __m512d a = _mm512_castps_pd(v[r][c][0]), b = _mm512_castps_pd(v[r][c][1]);
            float* to = own + (r * W + c) * 2 * L;
            put(to, _mm512_castpd_ps(_mm512_permutex2var_pd(a, low, b)));
            put(to + L, _mm512_castpd_ps(_mm512_permutex2var_pd(a, high, b)));
          }
        return;
      }
      if (!p.after.idle()) {
        const V scale = all(p.after.scale ? p.after.scale[s.target] : 1);
        const V bias = all(p.after.bias ? p.after.bias[s.target] : 0);
        const __m512i split = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        const char* q = (const char*)p.after.residual;
        if (q) q += p.where[s.target];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const char* here = q;
#pragma GCC unroll 32
          for (int c = 0; c < W; ++c) {
            asm("" : "+r"(here));
            V a = fma(v[r][c][0], scale, bias), b = fma(v[r][c][1], scale, bias);
            if (here) {
              const __m512i x = _mm512_permutexvar_epi64(split, _mm512_loadu_si512(here));
              a = add(a, _mm512_castsi512_ps(_mm512_slli_epi32(
                             _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16)));
              b = add(b, _mm512_castsi512_ps(_mm512_slli_epi32(
                             _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16)));
              here += p.target_col;
            }
            v[r][c][0] = p.after.relu ? rectified(a) : a;
            v[r][c][1] = p.after.relu ? rectified(b) : b;
          }
          if (q) q += p.target_row;
        }
      }
      const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
      char* to = p.target + p.where[s.target];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        char* q = to;
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          asm("" : "+r"(q));
          const __m512i y = _mm512_permutexvar_epi64(
              order, (__m512i)_mm512_cvtne2ps_pbh(v[r][c][1], v[r][c][0]));
          if (p.streams) _mm512_stream_si512((__m512i*)q, y);
          else _mm512_storeu_si512(q, y);
          q += p.target_col;
        }
        to += p.target_row;
      }
}

#endif

} // namespace

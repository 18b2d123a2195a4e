// SPDX-License-Identifier: MIT
// The products of kept weights with the packed source of one tile, sums in registers.
#pragma once

#include <array>
#include <utility>

#include "geometry.h"

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

// -- float32 -----------------------------------------------------------------------------------

struct Entry {
  int32_t offset; // bytes in the packed source
  float value;
};

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
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c)
          v[k][r][c] = k || (s.flags & FIRST) ? zero() : get(own + (r * W + c) * L);
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
    if (!(s.flags & LAST) || !p.target) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) put(own + (r * W + c) * L, v[0][r][c]);
      continue;
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
          v[0][r][c] = fma(v[0][r][c], scale, bias);
          if (here) v[0][r][c] = add(v[0][r][c], get((const float*)here)), here += p.target_col;
          if (p.after.relu) v[0][r][c] = rectified(v[0][r][c]);
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
        if (p.streams) stream((float*)q, v[0][r][c]);
        else put((float*)q, v[0][r][c]);
        q += p.target_col;
      }
      to += p.target_row;
    }
  }
}

struct Dots { // sums over pixels of source * gradient, for each kept weight
  const Segment* segments;
  int64_t count;
  const char* source;
  int64_t source_row;
  const char* grads; // of the tile's first pixel
  const int64_t* where; // bytes from there to a target's plane
  int64_t grad_row, grad_col; // bytes
  float* sums;
  Ahead* ahead;

  int64_t prefetches() const { return count ? ceil_div(ahead->count - ahead->done, count) : 0; }
};

#ifdef __AVX512F__
inline V totals(const V (&v)[L]) { // lane i: the sum over the lanes of v[i]
  V a[8], b[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    a[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const V c = add(_mm512_shuffle_f32x4(b[0], b[1], 0x44), _mm512_shuffle_f32x4(b[0], b[1], 0xEE));
  const V d = add(_mm512_shuffle_f32x4(b[2], b[3], 0x44), _mm512_shuffle_f32x4(b[2], b[3], 0xEE));
  return add(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xDD));
}
#else
inline V totals(const V (&v)[L]) {
  V a[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) a[i] = _mm256_hadd_ps(v[2 * i], v[2 * i + 1]);
  const V b = _mm256_hadd_ps(a[0], a[1]), c = _mm256_hadd_ps(a[2], a[3]);
  return add(_mm256_permute2f128_ps(b, c, 0x20), _mm256_permute2f128_ps(b, c, 0x31));
}
#endif

inline V product(V a, V b) { return mul(a, b); }
inline V product(V a, V b, V c) { return fma(a, b, c); }

// Both kinds of numbers: MUL multiplies two vectors (and adds a third).
template <int R, int W, class Mul, class Where>
void dot(const Dots& d, const Where* entries, Mul mul) {
  constexpr int K = R * W < 3 ? R * W : 3; // chains
  const int64_t prefetches = d.prefetches();
  const char* const source = d.source; // read once: a vector that is stored might be anything
  const int64_t source_row = d.source_row;
  V waiting[L];
  int fill = 0;
  float* out = d.count ? d.sums + d.segments[0].begin : nullptr;
  for (int64_t i = 0; i < d.count; ++i) {
    const Segment s = d.segments[i];
    d.ahead->some(prefetches);
    const char* g = d.grads + d.where[s.target];
    V v[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const char* here = g;
#pragma GCC unroll 32
      for (int c = 0; c < W; ++c) {
        asm("" : "+r"(here));
        v[r][c] = get((const float*)here);
        here += d.grad_col;
      }
      g += d.grad_row;
    }
    const Where *e = entries + s.begin, *end = e + s.count;
    for (; e < end; ++e) {
      const char* q = source + e->offset;
      V t[K];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        asm("" : "+r"(q));
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          const int k = r * W + c;
          const V x = get((const float*)q + c * L);
          t[k % K] = k < K ? mul(x, v[r][c]) : mul(x, v[r][c], t[k % K]);
        }
        q += source_row;
      }
      V sum = t[0];
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) sum = add(sum, t[k]);
      put((float*)&waiting[fill], sum);
      if (++fill == L) {
        put(out, add(get(out), totals(waiting)));
        out += L;
        fill = 0;
      }
    }
  }
  for (int k = 0; k < fill; ++k) out[k] += total(waiting[k]);
}

struct Float {
  typedef float S;
  typedef ::Entry Entry;
  static constexpr int64_t WIDTH = L; // elements of a vector
  static constexpr int64_t SUMS = VECTOR; // bytes of the sums of a vector
  static constexpr int CAP = L == 16 ? 28 : 12, DOT_CAP = L == 16 ? 25 : 10;

  struct Multiply {
    V operator()(V a, V b) const { return mul(a, b); }
    V operator()(V a, V b, V c) const { return fma(a, b, c); }
  };
  template <int R, int W>
  static void sum(const Products& p, const Entry* entries) { sum_up<R, W>(p, entries); }
};

#ifdef __AVX512BF16__

// -- bfloat16 ----------------------------------------------------------------------------------

struct PairEntry { // two kept weights of a target
  int32_t offset, second; // bytes in the packed source
  uint32_t values;
};

// The sums of 32 images: those of lanes 0-3 of every 8 in the first vector, 4-7 in the second.
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
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h)
            v[k][r][c][h] = k || (s.flags & FIRST) ? zero() : get(own + ((r * W + c) * 2 + h) * L);
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
    if (!(s.flags & LAST)) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) put(own + ((r * W + c) * 2 + h) * L, v[0][r][c][h]);
      continue;
    }
    if (!p.target) { // float32 in the order of the images
      const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
      const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < W; ++c) {
          const __m512d a = _mm512_castps_pd(v[0][r][c][0]), b = _mm512_castps_pd(v[0][r][c][1]);
          float* to = own + (r * W + c) * 2 * L;
          put(to, _mm512_castpd_ps(_mm512_permutex2var_pd(a, low, b)));
          put(to + L, _mm512_castpd_ps(_mm512_permutex2var_pd(a, high, b)));
        }
      continue;
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
          V a = fma(v[0][r][c][0], scale, bias), b = fma(v[0][r][c][1], scale, bias);
          if (here) {
            const __m512i x = _mm512_permutexvar_epi64(split, _mm512_loadu_si512(here));
            a = add(a, _mm512_castsi512_ps(_mm512_slli_epi32(
                           _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16)));
            b = add(b, _mm512_castsi512_ps(_mm512_slli_epi32(
                           _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16)));
            here += p.target_col;
          }
          v[0][r][c][0] = p.after.relu ? rectified(a) : a;
          v[0][r][c][1] = p.after.relu ? rectified(b) : b;
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
            order, (__m512i)_mm512_cvtne2ps_pbh(v[0][r][c][1], v[0][r][c][0]));
        if (p.streams) _mm512_stream_si512((__m512i*)q, y);
        else _mm512_storeu_si512(q, y);
        q += p.target_col;
      }
      to += p.target_row;
    }
  }
}

struct Half {
  typedef uint16_t S;
  typedef PairEntry Entry;
  static constexpr int64_t WIDTH = 2 * L;
  static constexpr int64_t SUMS = 2 * VECTOR;
  static constexpr int CAP = 13, DOT_CAP = 25;

  struct Multiply {
    V operator()(V a, V b) const { return _mm512_dpbf16_ps(zero(), (__m512bh)a, (__m512bh)b); }
    V operator()(V a, V b, V c) const { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  };
  template <int R, int W>
  static void sum(const Products& p, const Entry* entries) { sum_up_pairs<R, W>(p, entries); }
};

#endif

// -- a function for each tile ------------------------------------------------------------------

constexpr int MAX_ROWS = 6, MAX_COLS = 28;

template <class T>
struct Tiled {
  using Sum = void (*)(const Products&, const typename T::Entry*);
  using Dot = void (*)(const Dots&, const Entry*);

  template <int R, int W>
  static void dots(const Dots& d, const Entry* entries) {
    dot<R, W>(d, entries, typename T::Multiply{});
  }
  template <int I>
  static constexpr Sum sum_of() {
    constexpr int r = I / MAX_COLS + 1, w = I % MAX_COLS + 1;
    if constexpr (r * w <= T::CAP) return T::template sum<r, w>;
    else return nullptr;
  }
  template <int I>
  static constexpr Dot dot_of() {
    constexpr int r = I / MAX_COLS + 1, w = I % MAX_COLS + 1;
    if constexpr (r * w <= T::DOT_CAP) return dots<r, w>;
    else return nullptr;
  }
  template <int... I>
  static constexpr std::array<Sum, sizeof...(I)> sums_of(std::integer_sequence<int, I...>) {
    return {sum_of<I>()...};
  }
  template <int... I>
  static constexpr std::array<Dot, sizeof...(I)> dots_of(std::integer_sequence<int, I...>) {
    return {dot_of<I>()...};
  }
  using Every = std::make_integer_sequence<int, MAX_ROWS * MAX_COLS>;

  static Sum sum(int64_t runs, int64_t vectors) {
    static constexpr auto all = sums_of(Every{});
    return all[(runs - 1) * MAX_COLS + vectors - 1];
  }
  static Dot dot_function(int64_t runs, int64_t vectors) {
    static constexpr auto all = dots_of(Every{});
    return all[(runs - 1) * MAX_COLS + vectors - 1];
  }
};

} // namespace

// SPDX-License-Identifier: MIT
// Sums over pixels of source times gradient: the weight gradient.
#pragma once

#include "products.h"

namespace {

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

// The totals of vectors that come one after another, added to a row of numbers. They wait until the
// registers are free: 16 of them are added up at once.
class Totals {
 public:
  explicit Totals(float* out) : out_(out) {}

  ALWAYS_INLINE void add_to_next(V sum) {
    put(waiting_ + (count_++ & (ROOM - 1)) * L, sum);
    if (count_ - done_ == ROOM) flush();
  }
  __attribute__((noinline)) void flush() {
    for (; count_ - done_ >= L; done_ += L, out_ += L) {
      const float* from = waiting_ + (done_ & (ROOM - 1)) * L;
      V v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) v[i] = get(from + i * L);
      put(out_, add(get(out_), totals(v)));
    }
  }
  void end() {
    flush();
    for (; done_ < count_; ++done_) *out_++ += total(get(waiting_ + (done_ & (ROOM - 1)) * L));
  }

 private:
  static constexpr int64_t ROOM = 64;
  alignas(64) float waiting_[ROOM * L];
  int64_t count_ = 0, done_ = 0;
  float* out_;
};

// Both kinds of numbers: MUL multiplies two vectors (and adds a third).
template <int R, int W, class Mul, class Where>
void dot(const Dots& d, const Where* entries, Mul mul) {
  constexpr int K = R * W < 3 ? R * W : 3; // chains
  const int64_t prefetches = d.prefetches();
  const char* const source = d.source; // read once: a vector that is stored might be anything
  const int64_t source_row = d.source_row;
  Totals totals(d.count ? d.sums + d.segments[0].begin : nullptr);
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
      totals.add_to_next(sum);
    }
    totals.flush();
  }
  totals.end();
}

} // namespace

// SPDX-License-Identifier: MIT
// Batch norm, a residual sum and ReLU in one go, over [channel][pixels of all images].
#pragma once

#include <cmath>

#include "parallel.h"
#include "vectors.h"

namespace {

template <class S, class F>
inline void each_vector(int64_t n, const F& visit) { // visit(index, elements)
  int64_t i = 0;
  for (; i + L <= n; i += L) visit(i, int64_t{L});
  if (i < n) visit(i, n - i);
}

template <class S>
inline V some(const S* p, int64_t n) { return n == L ? get(p) : get(p, n); }
template <class S>
inline void some(S* p, V v, int64_t n) {
  if (n == L) put(p, v);
  else put(p, v, n);
}
inline V kept(V v, int64_t n) { // zero beyond the first n lanes
  if (n == L) return v;
  float own[L];
  put(own, v);
  return get(own, n);
}

struct Moments { double sum, square; };

// Sums of (x - pivot) and its square.
template <class S>
Moments moments(const S* x, int64_t n, float pivot) {
  V s[4] = {zero(), zero(), zero(), zero()}, q[4] = {zero(), zero(), zero(), zero()};
  const V p = all(pivot);
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const V v = sub(get(x + i + k * L), p);
      s[k] = add(s[k], v);
      q[k] = fma(v, v, q[k]);
    }
  for (; i < n; i += L) {
    const int64_t m = std::min<int64_t>(L, n - i);
    const V v = kept(sub(some(x + i, m), p), m);
    s[0] = add(s[0], v);
    q[0] = fma(v, v, q[0]);
  }
  Moments found{0, 0};
  for (int k = 0; k < 4; ++k) found.sum += total(s[k]), found.square += total(q[k]);
  return found;
}

inline float first_of(const float* x) { return *x; }
inline float first_of(const uint16_t* x) { return total(get(x, 1)); }

// y = relu(x * scale + shift + residual)
template <class S>
void affine(const S* x, const S* residual, int64_t n, float scale, float shift, bool relu, S* y) {
  const V a = all(scale), b = all(shift);
  each_vector<S>(n, [&](int64_t i, int64_t m) {
    V v = fma(some(x + i, m), a, b);
    if (residual) v = add(v, some(residual + i, m));
    some(y + i, relu ? rectified(v) : v, m);
  });
}

// Statistics of the batch; stats: mean and 1 / standard deviation of each channel.
template <class S>
void norm_forward(const S* x, const S* residual, const float* gamma, const float* beta, double eps,
    int64_t channels, int64_t n, bool relu, S* y, float* stats, float* mean_of, float* var_of,
    double momentum, int64_t threads) {
  in_turns(channels, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const float pivot = first_of(x + c * n);
      const Moments m = moments(x + c * n, n, pivot);
      const double off = m.sum / n, mean = off + pivot;
      double var = m.square / n - off * off;
      if (var < 0) var = 0;
      const double inverse = 1 / std::sqrt(var + eps);
      stats[c] = mean;
      stats[channels + c] = inverse;
      if (mean_of) {
        mean_of[c] += momentum * (mean - mean_of[c]);
        var_of[c] += momentum * (var * n / (n - 1) - var_of[c]);
      }
      const double scale = (gamma ? gamma[c] : 1) * inverse;
      affine(x + c * n, residual ? residual + c * n : nullptr, n, scale,
          (beta ? beta[c] : 0) - scale * mean, relu, y + c * n);
    }
  });
}

// y null: no ReLU. to_residual may be null.
template <class S>
void norm_backward(const S* dy, const S* y, const S* x, const float* gamma, const float* stats,
    int64_t channels, int64_t n, S* to_x, S* to_residual, float* to_gamma, float* to_beta,
    int64_t threads) {
  in_turns(channels, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t at = c * n;
      const V mean = all(stats[c]);
      const auto grad = [&](int64_t i, int64_t m) {
        const V d = some(dy + at + i, m);
        return y ? where_positive(some(y + at + i, m), d) : d;
      };
      V s[4] = {zero(), zero(), zero(), zero()}, q[4] = {zero(), zero(), zero(), zero()};
      int64_t i = 0;
      for (; i + 4 * L <= n; i += 4 * L)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          const V d = grad(i + k * L, L);
          s[k] = add(s[k], d);
          q[k] = fma(d, sub(get(x + at + i + k * L), mean), q[k]);
        }
      for (; i < n; i += L) {
        const int64_t m = std::min<int64_t>(L, n - i);
        const V d = grad(i, m);
        s[0] = add(s[0], d);
        q[0] = fma(d, kept(sub(some(x + at + i, m), mean), m), q[0]);
      }
      double sum = 0, dots = 0;
      for (int k = 0; k < 4; ++k) sum += total(s[k]), dots += total(q[k]);
      const double inverse = stats[channels + c], scale = (gamma ? gamma[c] : 1) * inverse;
      to_beta[c] = sum;
      to_gamma[c] = dots * inverse;
      const V a = all(scale), b = all(-scale * inverse * inverse * dots / n);
      const V e = all(-scale * sum / n);
      each_vector<S>(n, [&](int64_t j, int64_t m) {
        const V d = grad(j, m);
        if (to_residual) some(to_residual + at + j, d, m);
        const V centred = sub(some(x + at + j, m), mean);
        some(to_x + at + j, fma(d, a, fma(centred, b, e)), m);
      });
    }
  });
}

} // namespace

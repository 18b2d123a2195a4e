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
// With `streams` past the caches.
template <class S>
inline void some(S* p, V v, int64_t n, bool streams) {
  if (streams && n == L) stream(p, v);
  else some(p, v, n);
}
// Whether a result of channels of n elements had better go past the caches.
template <class S>
inline bool streamed(const S* p, int64_t channels, int64_t n) {
  return channels * n * (int64_t)sizeof(S) > KEPT && (uintptr_t)p % VECTOR == 0 && n % (2 * L) == 0;
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
void affine(const S* x, const S* residual, int64_t n, float scale, float shift, bool relu,
    bool streams, S* y) {
  const V a = all(scale), b = all(shift);
  each_vector<S>(n, [&](int64_t i, int64_t m) {
    V v = fma(some(x + i, m), a, b);
    if (residual) v = add(v, some(residual + i, m));
    some(y + i, relu ? rectified(v) : v, m, streams);
  });
}

// Statistics of the batch; stats: mean and 1 / standard deviation of each channel, and the scale and
// the shift that `affine` got.
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
      stats[2 * channels + c] = scale;
      stats[3 * channels + c] = (beta ? beta[c] : 0) - scale * mean;
      affine(x + c * n, residual ? residual + c * n : nullptr, n, stats[2 * channels + c],
          stats[3 * channels + c], relu, streamed(y, channels, n), y + c * n);
    }
  });
}

// Gradients of one channel; `grad(i, m)` is that of the sum before the ReLU.
template <class S, class G>
void channel_backward(const G& grad, const S* x, float scale, float mean, float inverse, int64_t n,
    bool streams, S* to_x, S* to_residual, float* to_gamma, float* to_beta) {
  const V m = all(mean);
  V s[4] = {zero(), zero(), zero(), zero()}, q[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const V d = grad(i + k * L, L);
      s[k] = add(s[k], d);
      q[k] = fma(d, sub(get(x + i + k * L), m), q[k]);
    }
  for (; i < n; i += L) {
    const int64_t rest = std::min<int64_t>(L, n - i);
    const V d = kept(grad(i, rest), rest);
    s[0] = add(s[0], d);
    q[0] = fma(d, kept(sub(some(x + i, rest), m), rest), q[0]);
  }
  double sum = 0, dots = 0;
  for (int k = 0; k < 4; ++k) sum += total(s[k]), dots += total(q[k]);
  *to_beta = sum;
  *to_gamma = dots * inverse;
  const double full = scale;
  const V a = all(scale), b = all(-full * inverse * inverse * dots / n), e = all(-full * sum / n);
  each_vector<S>(n, [&](int64_t j, int64_t rest) {
    const V d = grad(j, rest);
    if (to_residual) some(to_residual + j, d, rest, streams);
    some(to_x + j, fma(d, a, fma(sub(some(x + j, rest), m), b, e)), rest, streams);
  });
}

// relu: whether there was one; y null: no residual was added, so that x tells its sign, which is
// one tensor less to read. to_residual may be null.
template <class S>
void norm_backward(const S* dy, const S* y, const S* x, const float* stats, int64_t channels,
    int64_t n, bool relu, S* to_x, S* to_residual, float* to_gamma, float* to_beta,
    int64_t threads) {
  const bool streams = streamed(to_x, channels, n) && (uintptr_t)to_residual % VECTOR == 0;
  in_turns(channels, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const S *d = dy + c * n, *in = x + c * n, *out = y ? y + c * n : nullptr;
      const float mean = stats[c], inverse = stats[channels + c], scale = stats[2 * channels + c];
      const V a = all(scale), shift = all(stats[3 * channels + c]);
      const auto one = [&](const auto& grad) {
        channel_backward(grad, in, scale, mean, inverse, n, streams, to_x + c * n,
            to_residual ? to_residual + c * n : nullptr, to_gamma + c, to_beta + c);
      };
      if (!relu) one([&](int64_t i, int64_t m) { return some(d + i, m); });
      else if (out) one([&](int64_t i, int64_t m) {
        return where_positive(some(out + i, m), some(d + i, m));
      });
      else one([&](int64_t i, int64_t m) {
        return where_positive(fma(some(in + i, m), a, shift), some(d + i, m));
      });
    }
  });
}

} // namespace

// SPDX-License-Identifier: MIT
// The two types of activations, and a function for each of their tiles.
#pragma once

#include <array>
#include <utility>

#include "both.h"
#include "sums.h"

namespace {

struct Float {
  typedef float S;
  typedef ::Entry Entry;
  static constexpr int64_t WIDTH = L; // elements of a vector
  static constexpr int64_t SUMS = VECTOR; // bytes of the sums of a vector
  static constexpr int CAP = L == 16 ? 28 : 12, DOT_CAP = L == 16 ? 25 : 10;
  static constexpr int BOTH_CAP = L == 16 ? 13 : 0;

  struct Multiply {
    V operator()(V a, V b) const { return mul(a, b); }
    V operator()(V a, V b, V c) const { return fma(a, b, c); }
  };
  template <int R, int W>
  static void sum(const Products& p, const Entry* entries) { sum_up<R, W>(p, entries); }
#ifdef __AVX512F__
  template <int R, int W>
  static void both(const Products& p, const Inputs& x, const Entry* entries) {
    sum_both<R, W>(p, x, entries);
  }
#endif
};

#ifdef __AVX512BF16__

struct Half {
  typedef uint16_t S;
  typedef PairEntry Entry;
  static constexpr int64_t WIDTH = 2 * L;
  static constexpr int64_t SUMS = 2 * VECTOR;
  static constexpr int CAP = 13, DOT_CAP = 25, BOTH_CAP = 12;

  struct Multiply {
    V operator()(V a, V b) const { return _mm512_dpbf16_ps(zero(), (__m512bh)a, (__m512bh)b); }
    V operator()(V a, V b, V c) const { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  };
  template <int R, int W>
  static void sum(const Products& p, const Entry* entries) { sum_up_pairs<R, W>(p, entries); }
  template <int R, int W>
  static void both(const Products& p, const Inputs& x, const Entry* entries) {
    sum_both_pairs<R, W>(p, x, entries);
  }
};

#endif

// -- a function for each tile ------------------------------------------------------------------

constexpr int MAX_ROWS = 6, MAX_COLS = 28;

template <class T>
struct Tiled {
  using Sum = void (*)(const Products&, const typename T::Entry*);
  using Dot = void (*)(const Dots&, const Entry*);
  using Both = void (*)(const Products&, const Inputs&, const typename T::Entry*);

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
  template <int I>
  static constexpr Both both_of() {
    constexpr int r = I / MAX_COLS + 1, w = I % MAX_COLS + 1;
    if constexpr (r * w <= T::BOTH_CAP) return T::template both<r, w>;
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
  template <int... I>
  static constexpr std::array<Both, sizeof...(I)> boths_of(std::integer_sequence<int, I...>) {
    return {both_of<I>()...};
  }
  using Every = std::make_integer_sequence<int, MAX_ROWS * MAX_COLS>;

  static Sum sum(int64_t runs, int64_t vectors) {
    static constexpr auto all = sums_of(Every{});
    return all[(runs - 1) * MAX_COLS + vectors - 1];
  }
  static Both both(int64_t runs, int64_t vectors) {
    static constexpr auto all = boths_of(Every{});
    return all[(runs - 1) * MAX_COLS + vectors - 1];
  }
  static Dot dot_function(int64_t runs, int64_t vectors) {
    static constexpr auto all = dots_of(Every{});
    return all[(runs - 1) * MAX_COLS + vectors - 1];
  }
};

} // namespace

// SPDX-License-Identifier: MIT
// Vectors, by the extensions that GCC and Clang share: the flags of the build decide how wide.
#pragma once

#include <cstring>

namespace {

constexpr int B = 8; // channels of a block
constexpr int COLS = 3; // pixels, or channels of a gradient, that share what is loaded for them
#ifdef __AVX512F__
constexpr int L = 16; // lanes: rows of different images, or strips of rows of one
constexpr int OUTS = 8; // target channels at once: OUTS * COLS sums, and the rest, in registers
#else
constexpr int L = 8;
constexpr int OUTS = 4;
#endif

typedef float V __attribute__((vector_size(L * sizeof(float))));
typedef float V8 __attribute__((vector_size(8 * sizeof(float))));

template <class T>
inline T load(const float* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(float* p, T v) {
  std::memcpy(p, &v, sizeof v);
}

// Lanes of a (0-7) and b (8-15).
template <int... I>
inline V8 mix(V8 a, V8 b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  typedef int I8 __attribute__((vector_size(8 * sizeof(int))));
  return __builtin_shuffle(a, b, I8{I...});
#endif
}

inline void transpose(V8 (&v)[8]) {
  V8 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = mix<0, 8, 1, 9, 4, 12, 5, 13>(v[i], v[i + 1]);
    a[i + 1] = mix<2, 10, 3, 11, 6, 14, 7, 15>(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const int j = i / 4 * 4 + i % 4 / 2;
    b[i] = mix<0, 1, 8, 9, 4, 5, 12, 13>(a[j], a[j + 2]);
    b[i + 1] = mix<2, 3, 10, 11, 6, 7, 14, 15>(a[j], a[j + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = mix<0, 1, 2, 3, 8, 9, 10, 11>(b[i], b[i + 4]);
    v[i + 4] = mix<4, 5, 6, 7, 12, 13, 14, 15>(b[i], b[i + 4]);
  }
}

// Lane i of the result: the sum over the lanes of v[i].
inline V8 totals(const V8 (&v)[8]) {
  V8 a[4], b[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    a[i] = mix<0, 8, 2, 10, 4, 12, 6, 14>(v[2 * i], v[2 * i + 1]) +
        mix<1, 9, 3, 11, 5, 13, 7, 15>(v[2 * i], v[2 * i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    b[i] = mix<0, 1, 8, 9, 4, 5, 12, 13>(a[2 * i], a[2 * i + 1]) +
        mix<2, 3, 10, 11, 6, 7, 14, 15>(a[2 * i], a[2 * i + 1]);
  return mix<0, 1, 2, 3, 8, 9, 10, 11>(b[0], b[1]) +
      mix<4, 5, 6, 7, 12, 13, 14, 15>(b[0], b[1]);
}

} // namespace

// SPDX-License-Identifier: MIT
// Matrices transposed, by which activations change their layout.
#pragma once

#include "parallel.h"
#include "vectors.h"

namespace {

inline void eight(const float* from, int64_t step, float* to, int64_t to_step) {
  __m256 v[8], a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(from + i * step);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0xEE);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
  }
}

inline void eight(const uint16_t* from, int64_t step, uint16_t* to, int64_t to_step) {
  __m128i v[8], a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = _mm_loadu_si128((const __m128i*)(from + i * step));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm_unpacklo_epi16(v[i], v[i + 4]);
    a[2 * i + 1] = _mm_unpackhi_epi16(v[i], v[i + 4]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
    v[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128((__m128i*)(to + 2 * i * to_step), _mm_unpacklo_epi16(v[i], v[i + 4]));
    _mm_storeu_si128((__m128i*)(to + (2 * i + 1) * to_step), _mm_unpackhi_epi16(v[i], v[i + 4]));
  }
}

// to[j][i] = from[i][j], in tiles that leave both in the cache.
template <class S>
void transpose(const S* from, int64_t rows, int64_t cols, int64_t step, S* to, int64_t to_step) {
  constexpr int64_t SIDE = 64;
  for (int64_t i0 = 0; i0 < rows; i0 += SIDE)
    for (int64_t j0 = 0; j0 < cols; j0 += SIDE) {
      const int64_t i1 = std::min(rows, i0 + SIDE), j1 = std::min(cols, j0 + SIDE);
      const int64_t i8 = i0 + (i1 - i0) / 8 * 8, j8 = j0 + (j1 - j0) / 8 * 8;
      for (int64_t j = j0; j < j8; j += 8)
        for (int64_t i = i0; i < i8; i += 8)
          eight(from + i * step + j, step, to + j * to_step + i, to_step);
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = i < i8 ? j8 : j0; j < j1; ++j) to[j * to_step + i] = from[i * step + j];
    }
}

// Images (count, channels, pixels) with these steps <-> [channel][pixel][image]; one of the steps
// of channels and pixels is 1.
struct Images {
  int64_t count, channels, pixels, step, channel_step, pixel_step;
};

template <class S>
void to_lanes(const Images& m, const S* from, S* to, int64_t threads) {
  if (m.pixel_step == 1)
    in_turns(m.channels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        transpose(from + c * m.channel_step, m.count, m.pixels, m.step, to + c * m.pixels * m.count,
            m.count);
    });
  else
    in_turns(m.pixels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        transpose(from + p * m.pixel_step, m.count, m.channels, m.step, to + p * m.count,
            m.pixels * m.count);
    });
}

template <class S>
void from_lanes(const Images& m, const S* from, S* to, int64_t threads) {
  if (m.pixel_step == 1)
    in_turns(m.channels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        transpose(from + c * m.pixels * m.count, m.pixels, m.count, m.count, to + c * m.channel_step,
            m.step);
    });
  else
    in_turns(m.pixels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        transpose(from + p * m.count, m.channels, m.count, m.pixels * m.count,
            to + p * m.pixel_step, m.step);
    });
}

} // namespace

// SPDX-License-Identifier: MIT
// Vectors of float32, 16 wide with AVX-512 and 8 wide with AVX2, and bfloat16 beside them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int L = 16;
typedef __m512 V;
inline V zero() { return _mm512_setzero_ps(); }
inline V all(float x) { return _mm512_set1_ps(x); }
inline V get(const float* p) { return _mm512_loadu_ps(p); }
inline void put(float* p, V v) { _mm512_storeu_ps(p, v); }
inline void stream(float* p, V v) { _mm512_stream_ps(p, v); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
// NaN stays NaN, as in torch: the second operand is what comes out then.
inline V rectified(V v) { return _mm512_max_ps(zero(), v); }
// `v` where `sign` is above zero (or NaN), else zero.
inline V where_positive(V sign, V v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(sign, zero(), _CMP_NLE_UQ), v);
}
inline float total(V v) { return _mm512_reduce_add_ps(v); }
inline V get(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
#ifdef __AVX512BF16__
inline void put(uint16_t* p, V v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
#else
inline void put(uint16_t* p, V v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_srli_epi32(
      _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  _mm256_storeu_si256(
      (__m256i*)p, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc0))));
}
#endif
#else
constexpr int L = 8;
typedef __m256 V;
inline V zero() { return _mm256_setzero_ps(); }
inline V all(float x) { return _mm256_set1_ps(x); }
inline V get(const float* p) { return _mm256_loadu_ps(p); }
inline void put(float* p, V v) { _mm256_storeu_ps(p, v); }
inline void stream(float* p, V v) { _mm256_stream_ps(p, v); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V rectified(V v) { return _mm256_max_ps(zero(), v); }
inline V where_positive(V sign, V v) {
  return _mm256_and_ps(_mm256_cmp_ps(sign, zero(), _CMP_NLE_UQ), v);
}
inline float total(V v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline V get(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline void put(uint16_t* p, V v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_srli_epi32(
      _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128((__m128i*)p,
      _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
}
#endif

constexpr int64_t VECTOR = L * sizeof(float); // bytes
inline void stream(uint16_t* p, V v) { put(p, v); } // half a line at a time gains nothing

// The first n < L elements, zero beyond them.
template <class S>
inline V get(const S* p, int64_t n) {
  S own[L] = {};
  std::memcpy(own, p, n * sizeof(S));
  return get(own);
}
template <class S>
inline void put(S* p, V v, int64_t n) {
  S own[L];
  put(own, v);
  std::memcpy(p, own, n * sizeof(S));
}

inline uint16_t rounded(float x) { // to the nearest bfloat16, ties to even
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

} // namespace

// SPDX-License-Identifier: MIT
// Convolution by the kept 8x8 blocks of its weight only: see sparse_ext/kernels/plan.py.
//
// Activations are channels_last in memory. A task copies a few images and rows of its source into
// planes of 8 channels (nChw8c, with zero columns for the padding, split into the phases of the
// stride), small enough for the L2 cache. There, neighbouring pixels are 32 bytes apart, so a tile
// of pixels is addressed by constants, and a block is 8 vectors times 8 broadcast scalars per
// pixel. Vector extensions of GCC and Clang instead of intrinsics: the flags of the build decide
// between AVX2 and AVX-512 (32 registers, scalars broadcast by the multiplication itself).

#include "planes.h"
#include "products.h"
#include "tiles.h"

extern "C" {

// coordinates: per entry (first output, first input, kernel position), int32.
// shape: outputs, inputs, positions; strides of the weight in that order.
// transposed: vectors run over input channels (input gradient), not over outputs (forward).
void block_conv_gather(const float* weight, const int64_t* shape, const int64_t* strides,
    const int32_t* coordinates, int64_t count, int64_t transposed, float* packed) {
  at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      const int32_t* at = coordinates + 3 * e;
      const float* from = weight + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
      const int64_t outs = std::min<int64_t>(B, shape[0] - at[0]);
      const int64_t ins = std::min<int64_t>(B, shape[1] - at[1]);
      float* to = packed + e * B * B;
      if (outs < B || ins < B)
        std::memset(to, 0, B * B * sizeof(float));
      const int64_t by_out = transposed ? B : 1, by_in = transposed ? 1 : B;
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t i = 0; i < ins; ++i)
          to[o * by_out + i * by_in] = from[o * strides[0] + i * strides[1]];
    }
  });
}

// dst = bias + the products of all entries; every element of dst is written.
void block_conv_pass(const Geometry* g, const float* src, const float* bias, const float* weights,
    const Entry* entries, const int32_t* ptr, const int32_t* phases, float* dst) {
  run_pass({*g, bias, weights, entries, ptr, dst}, src, phases);
}

// Floats that block_conv_weight_gradient needs as `sums`.
int64_t block_conv_sums(const Geometry* g, int64_t count) {
  return slots_of(cut(*g, images_per_chunk(*g))) * count * B * B;
}

// Gradient of the kept blocks, in the order of the entries of the forward pass, added up over
// images and pixels in an order that depends on the number of threads only. grad_weight: zeros.
void block_conv_weight_gradient(const Geometry* g, const float* src, const float* grads,
    const Entry* entries, const int32_t* ptr, const int32_t* phases, int64_t count,
    const int64_t* shape, const int64_t* strides, const int32_t* coordinates, float* sums,
    float* grad_weight) {
  const int64_t slots = sum_products(*g, src, grads, entries, ptr, phases, count, sums);
  at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      float* total = sums + e * B * B;
      for (int64_t slot = 1; slot < slots; ++slot)
        for (int64_t j = 0; j < B * B; ++j)
          total[j] += sums[(slot * count + e) * B * B + j];
      const int32_t* at = coordinates + 3 * e;
      float* to = grad_weight + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
      for (int64_t o = 0; o < std::min<int64_t>(B, shape[0] - at[0]); ++o)
        for (int64_t i = 0; i < std::min<int64_t>(B, shape[1] - at[1]); ++i)
          to[o * strides[0] + i * strides[1]] = total[i * B + o];
    }
  });
}

} // extern "C"

// SPDX-License-Identifier: MIT
// Convolution by the kept 8x8 blocks of its weight only: see sparse_ext/kernels/plan.py.
//
// Activations are channels_last in memory. A task copies a few rows of its source into planes
// [channel block][row][column][8 channels][lane], small enough for the L2 cache, where the lanes
// of a vector are different images: a weight is broadcast once and multiplies several pixels, the
// sums stay in registers over all blocks of a row, and what lies beside an image can be skipped.
// Few images are cut into strips of rows, which are lanes then.

#include "planes.h"
#include "products.h"
#include "tiles.h"

namespace {

constexpr int AHEAD = 4; // blocks whose memory is asked for before their turn

} // namespace

extern "C" {

// A weight (outputs, inputs, kernel positions) in memory, its outputs outermost. A block is given
// by its first output, first input and kernel position.
struct Weight {
  int64_t outputs, inputs, positions, input_stride, position_stride;

  int64_t row() const {
    return inputs * positions;
  }
  int64_t offset(const int32_t* block) const {
    return block[0] * row() + block[1] * input_stride + block[2] * position_stride;
  }
  int64_t outs(const int32_t* block) const { // that exist
    return std::min<int64_t>(B, outputs - block[0]);
  }
  int64_t ins(const int32_t* block) const {
    return std::min<int64_t>(B, inputs - block[1]);
  }
};

// packed[block][output][input], with zeros beyond the last channels.
void block_conv_gather(
    const float* weight, const Weight* w, const int32_t* coordinates, int64_t count, float* packed) {
  at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const int32_t* block = coordinates + 3 * e;
      if (e + AHEAD < count)
        for (int o = 0; o < B; ++o)
          __builtin_prefetch(weight + w->offset(block + 3 * AHEAD) + o * w->row());
      const int64_t from = w->offset(block), outs = w->outs(block), ins = w->ins(block);
      float* to = packed + e * B * B;
      if (outs < B || ins < B)
        std::memset(to, 0, B * B * sizeof(float));
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t i = 0; i < ins; ++i)
          to[o * B + i] = weight[from + o * w->row() + i * w->input_stride];
    }
  });
}

// dst = bias + the products of all entries; every element of dst is written.
// transposed: from outputs to inputs (input gradient), not from inputs to outputs (forward).
void block_conv_pass(const Geometry* g, const float* src, const float* bias, const float* weights,
    int64_t transposed, const Entry* entries, const int32_t* ptr, const int32_t* phases,
    float* dst) {
  run_pass({*g, bias, weights, transposed != 0, entries, ptr, dst}, src, phases);
}

// Floats that block_conv_weight_gradient needs as `sums`.
int64_t block_conv_sums(const Geometry* g, int64_t count) {
  return slots_of(cut(*g)) * count * B * B;
}

// Gradient of the kept blocks, added up over images and pixels in an order that depends on the
// number of threads only; zero elsewhere. count: of blocks.
void block_conv_weight_gradient(const Geometry* g, const float* src, const float* grads,
    const Entry* entries, const int32_t* ptr, const int32_t* phases, int64_t count,
    const Weight* w, const int32_t* coordinates, float* sums, float* grad_weight) {
  sum_products(*g, src, grads, entries, ptr, phases, count, sums);
  const int64_t slots = slots_of(cut(*g));
  at::parallel_for(0, ceil_div(w->outputs, B), 1, [&](int64_t begin, int64_t end) {
    for (int64_t out = begin; out < end; ++out) { // its zeros stay in the cache until it is done
      const int64_t rows = std::min<int64_t>(B, w->outputs - out * B);
      std::memset(grad_weight + out * B * w->row(), 0, rows * w->row() * sizeof(float));
      for (int64_t e = ptr[out]; e < ptr[out + 1]; ++e) {
        const int32_t* block = coordinates + 3 * e;
        const int64_t to = w->offset(block), outs = w->outs(block), ins = w->ins(block);
        float* total = sums + e * B * B;
        for (int64_t slot = 1; slot < slots; ++slot)
          for (int64_t j = 0; j < B * B; ++j)
            total[j] += sums[(slot * count + e) * B * B + j];
        for (int64_t o = 0; o < outs; ++o)
          for (int64_t i = 0; i < ins; ++i)
            grad_weight[to + o * w->row() + i * w->input_stride] = total[i * B + o];
      }
    }
  });
}

} // extern "C"

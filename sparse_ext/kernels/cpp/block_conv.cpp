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

// A weight (outputs, inputs, kernel positions) in memory, its outputs outermost, and where its kept
// blocks lie: per block (first output, first input, kernel position), those of a block of outputs
// from ptr[it] to ptr[it + 1].
struct Weight {
  int64_t outputs, inputs, positions, input_stride, position_stride;

  int64_t row() const {
    return inputs * positions;
  }
};

// Calls f(block, offset of its first element, outputs, inputs that exist), in order.
template <class F>
void each_block(const Weight& w, const int32_t* coordinates, const int32_t* ptr, int64_t out, F f) {
  for (int64_t e = ptr[out]; e < ptr[out + 1]; ++e) {
    const int32_t* at = coordinates + 3 * e;
    f(e, at[0] * w.row() + at[1] * w.input_stride + at[2] * w.position_stride,
        std::min<int64_t>(B, w.outputs - at[0]), std::min<int64_t>(B, w.inputs - at[1]));
  }
}

} // namespace

extern "C" {

// packed[block][output][input], with zeros beyond the last channels.
void block_conv_gather(const float* weight, const Weight* w, const int32_t* coordinates,
    const int32_t* ptr, float* packed) {
  at::parallel_for(0, ceil_div(w->outputs, B), 1, [&](int64_t begin, int64_t end) {
    for (int64_t out = begin; out < end; ++out) {
      each_block(*w, coordinates, ptr, out,
          [&](int64_t block, int64_t from, int64_t outs, int64_t ins) {
            float* to = packed + block * B * B;
            if (outs < B || ins < B)
              std::memset(to, 0, B * B * sizeof(float));
            for (int64_t o = 0; o < outs; ++o)
              for (int64_t i = 0; i < ins; ++i)
                to[o * B + i] = weight[from + o * w->row() + i * w->input_stride];
          });
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
    for (int64_t out = begin; out < end; ++out) {
      const int64_t rows = std::min<int64_t>(B, w->outputs - out * B);
      std::memset(grad_weight + out * B * w->row(), 0, rows * w->row() * sizeof(float));
      each_block(*w, coordinates, ptr, out,
          [&](int64_t block, int64_t to, int64_t outs, int64_t ins) {
            float* total = sums + block * B * B;
            for (int64_t slot = 1; slot < slots; ++slot)
              for (int64_t j = 0; j < B * B; ++j)
                total[j] += sums[(slot * count + block) * B * B + j];
            for (int64_t o = 0; o < outs; ++o)
              for (int64_t i = 0; i < ins; ++i)
                grad_weight[to + o * w->row() + i * w->input_stride] = total[i * B + o];
          });
    }
  });
}

} // extern "C"

// SPDX-License-Identifier: MIT
// Weight gradient of the kept blocks: every block is a sum over the pixels of a chunk.
#pragma once

#include "planes.h"

namespace {

// The source and the gradient of one chunk, both packed.
struct Pair {
  const Geometry& g;
  const Chunk& k;
  const float* planes;
  const float* grads; // [block][row][image][column][8], no padding
  int64_t width;
};

// sums[entry][source channel][8 targets] += products over the chunk, for E blocks of equal rows.
template <int E>
__attribute__((noinline)) void add_products(
    const Pair& p, const Entry* entries, const float* grads, float* sums) {
  const Chunk& k = p.k;
  V acc[E][B];
#pragma GCC unroll 3
  for (int e = 0; e < E; ++e)
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i)
      acc[e][i] = load(sums + (e * B + i) * B);
  const float* base[E];
  for (int e = 0; e < E; ++e)
    base[e] = p.planes + entries[e].plane * k.plane_stride + (entries[e].shift_x - p.g.min_x) * B +
        (k.a0 + entries[e].shift_y - k.row0) * k.row_stride;
  for (int64_t a = k.a0; a < k.a1; ++a) {
    const int64_t y = a * p.g.src_step_y + entries[0].row;
    if (y < 0 || y >= p.g.src_h)
      continue;
    for (int64_t n = 0; n < k.images; ++n) {
      const int64_t at = (a - k.a0) * k.row_stride + n * k.image_stride;
      const float* v = grads + ((a - k.a0) * k.images + n) * p.width * B;
      const float* s[E];
#pragma GCC unroll 3
      for (int e = 0; e < E; ++e)
        s[e] = base[e] + at;
      for (int64_t x = 0; x < p.width; ++x, v += B) {
        const V grad = load(v);
#pragma GCC unroll 3
        for (int e = 0; e < E; ++e) {
          opaque(s[e]);
#pragma GCC unroll 8
          for (int i = 0; i < B; ++i)
            acc[e][i] += grad * s[e][i];
          s[e] += B;
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int e = 0; e < E; ++e)
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i)
      store(sums + (e * B + i) * B, acc[e][i]);
}

// Entries of one block of target channels, in groups that share their rows.
void products_of_block(
    const Pair& p, const Entry* entries, int count, const float* grads, float* sums) {
  for (int k = 0; k < count;) {
    int same = 1;
    while (same < GROUP && k + same < count && entries[k + same].row == entries[k].row)
      ++same;
    float* to = sums + static_cast<int64_t>(k) * B * B;
    if (same == 3)
      add_products<3>(p, entries + k, grads, to);
    else if (same == 2)
      add_products<2>(p, entries + k, grads, to);
    else
      add_products<1>(p, entries + k, grads, to);
    k += same;
  }
}

void pack_grads(const Geometry& g, const Chunk& k, const float* grads, float* packed) {
  const int64_t plane = (k.a1 - k.a0) * k.images * g.dst_w * B;
  for (int64_t a = k.a0; a < k.a1; ++a)
    for (int64_t n = 0; n < k.images; ++n)
      for (int64_t x = 0; x < g.dst_w; ++x)
        spread(
            grads + (((k.n0 + n) * g.dst_h + a) * g.dst_w + x) * g.dst_c,
            packed + (((a - k.a0) * k.images + n) * g.dst_w + x) * B,
            g.dst_c,
            plane);
}

// Images whose packed source and gradient fill a chunk; few enough to keep all threads busy.
int64_t images_per_chunk(const Geometry& g) {
  const int64_t source = g.slots * ceil_div(g.src_c, B) * ceil_div(g.src_h, g.src_step_y);
  const int64_t bytes = source * packed_cols(g) * B * 4 + g.dst_c * g.dst_h * g.dst_w * 4;
  const int64_t fit = std::max<int64_t>(CHUNK_BYTES / bytes, 1);
  return std::min(fit, ceil_div(g.images, at::get_num_threads()));
}

// Sums are kept per slot, each of which adds up a fixed share of the tasks.
int64_t slots_of(const Cut& c) {
  return std::min<int64_t>(c.tasks(), at::get_num_threads());
}

// sums[slot][entry][source channel][8 targets]; returns the number of slots.
int64_t sum_products(const Geometry& g, const float* src, const float* grads, const Entry* entries,
    const int32_t* ptr, const int32_t* phases, int64_t count, float* sums) {
  const Cut c = cut(g, images_per_chunk(g));
  const int64_t blocks = ceil_div(g.dst_c, B), slots = slots_of(c);
  at::parallel_for(0, slots, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      float* mine = sums + slot * count * B * B;
      std::memset(mine, 0, count * B * B * sizeof(float));
      for (int64_t task = slot * c.tasks() / slots; task < (slot + 1) * c.tasks() / slots; ++task) {
        const Chunk k = chunk_of(g, c, task);
        float* planes = scratch(0, g.slots * ceil_div(g.src_c, B) * k.plane_stride + B);
        const int64_t plane = (k.a1 - k.a0) * k.images * g.dst_w * B;
        float* packed = scratch(1, blocks * plane);
        pack(g, k, src, phases, planes);
        pack_grads(g, k, grads, packed);
        const Pair pair{g, k, planes, packed, g.dst_w};
        for (int64_t b = 0; b < blocks; ++b)
          products_of_block(pair, entries + ptr[b], ptr[b + 1] - ptr[b], packed + b * plane,
              mine + static_cast<int64_t>(ptr[b]) * B * B);
      }
    }
  });
  return slots;
}

} // namespace

// SPDX-License-Identifier: MIT
// Weight gradient of the kept blocks: every block is a sum over the pixels of all images.
#pragma once

#include "planes.h"

namespace {

// Source and gradient of the rows [a0, a1) that a task has present.
struct Pair {
  const Geometry& g;
  const int32_t* phases;
  bool whole; // images are not cut
  const Planes& source;
  const Planes& grads;
  int64_t a0, a1;
};

// Columns of the target for which the source has one, and rows likewise.
struct Window {
  int64_t x0, x1, a0, a1;
};

Window window_of(const Pair& p, const Entry& e) {
  const Geometry& g = p.g;
  const int32_t* phase = p.phases + e.plane / ceil_div(g.src_c, B) * 2;
  Window w{std::max(0, -e.shift_x), 0, p.a0, p.a1};
  w.x1 = std::min(g.dst_w, ceil_div(g.src_w - phase[1], g.src_step_x) - e.shift_x);
  if (p.whole) {
    w.a0 = std::max<int64_t>(w.a0, -e.shift_y);
    w.a1 = std::min(w.a1, ceil_div(g.src_h - phase[0], g.src_step_y) - e.shift_y);
  }
  return w;
}

// out[channel][target][lane] = products over the window, for I source channels from `first` on.
template <int I>
void multiply(const Pair& p, const Entry& e, const Window& w, int64_t block, int first, float* out) {
  for (int target = 0; target < B; target += OUTS) {
    V acc[OUTS][I]; // no initialiser, which would keep it in memory
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 3
      for (int i = 0; i < I; ++i)
        acc[o][i] = V{};
    for (int64_t a = w.a0; a < w.a1; ++a) {
      const float* v = p.grads.row(block, a) + w.x0 * PIXEL + target * L;
      const float* s = p.source.row(e.plane, a + e.shift_y) +
          (w.x0 + e.shift_x - p.g.min_x) * PIXEL + first * L;
      for (int64_t x = w.x0; x < w.x1; ++x, v += PIXEL, s += PIXEL) {
        V seen[I];
#pragma GCC unroll 3
        for (int i = 0; i < I; ++i)
          seen[i] = load<V>(s + i * L);
#pragma GCC unroll 8
        for (int o = 0; o < OUTS; ++o) {
          const V grad = load<V>(v + o * L);
#pragma GCC unroll 3
          for (int i = 0; i < I; ++i)
            acc[o][i] += grad * seen[i];
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 3
      for (int i = 0; i < I; ++i)
        store(out + (i * B + target + o) * L, acc[o][i]);
  }
}

// sums[source channel][8 targets] += products over the rows that are present.
void add_block(const Pair& p, const Entry& e, int64_t block, float* sums) {
  const Window w = window_of(p, e);
  alignas(64) float products[B][B][L];
  multiply<3>(p, e, w, block, 0, products[0][0]);
  multiply<3>(p, e, w, block, 3, products[3][0]);
  multiply<2>(p, e, w, block, 6, products[6][0]);
  for (int i = 0; i < B; ++i, sums += B) {
    V8 v[B];
#pragma GCC unroll 8
    for (int o = 0; o < B; ++o) {
      v[o] = load<V8>(products[i][o]);
      if (L > 8)
        v[o] += load<V8>(products[i][o] + L - 8);
    }
    store(sums, load<V8>(sums) + totals(v));
  }
}

// Sums are kept per slot, each of which adds up a fixed share of the tasks.
int64_t slots_of(const Cut& c) {
  return std::min<int64_t>(c.tasks, at::get_num_threads());
}

// sums[slot][entry][source channel][8 targets].
void sum_products(const Geometry& g, const float* src, const float* grads, const Entry* entries,
    const int32_t* ptr, const int32_t* phases, int64_t count, float* sums) {
  const Cut c = cut(g);
  const int32_t phase[2] = {0, 0};
  const Source source = source_of(g, src, phases);
  const Source target{grads, g.dst_c, g.dst_h, g.dst_w, 1, 1, phase, 1, 0, g.dst_w};
  const Rows rows = rows_of(g, c);
  const int64_t slots = slots_of(c), both = source.row_floats() + target.row_floats();
  const int64_t step = std::max(rows_at_once(g, c, source.row_floats(), both),
      std::min(c.rows, ceil_div(16, g.dst_w))); // few pixels are not worth adding up lanes for
  const int64_t ring = std::clamp<int64_t>(rows.high - rows.low, 1, step + g.max_y - g.min_y);
  at::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    float* from = scratch<float>(0, ring * source.row_floats());
    float* to = scratch<float>(1, step * target.row_floats());
    for (int64_t slot = begin; slot < end; ++slot) {
      float* mine = sums + slot * count * B * B;
      std::memset(mine, 0, count * B * B * sizeof(float));
      for (int64_t i = slot * c.tasks / slots; i < (slot + 1) * c.tasks / slots; ++i) {
        const Task t = task_of(g, c, i);
        Planes seen = planes_of(source, from, ring, rows.low);
        Planes wanted = planes_of(target, to, step, 0);
        for (int64_t a0 = 0; a0 < c.rows; a0 += step) {
          const int64_t a1 = std::min(a0 + step, c.rows);
          advance(source, t, seen, std::max(a0 + g.min_y, rows.low),
              std::min(a1 + g.max_y, rows.high));
          advance(target, t, wanted, a0, a1);
          const Pair pair{g, phases, c.strips == 1, seen, wanted, a0, a1};
          for (int64_t b = 0; b < target.blocks(); ++b)
            for (int32_t k = ptr[b]; k < ptr[b + 1]; ++k)
              add_block(pair, entries[k], b, mine + static_cast<int64_t>(k) * B * B);
        }
      }
    }
  });
}

} // namespace

// SPDX-License-Identifier: MIT
// The kept weights of a mask in the order of a pass, by counting: no comparison sorts.
#pragma once

#include <algorithm>
#include <vector>

#include "products.h"

namespace {

extern "C" {

struct Kernel { // as `Kernel` of plan.py: a convolution's weight and how it moves
  int64_t outputs, inputs, rows, cols;
  int64_t steps[4]; // of the weight in memory, in elements
  int64_t stride[2], padding[2], dilation[2];
  int64_t transposed; // the input gradient: from outputs to inputs
};

} // extern "C"

struct Place { // of one kept weight
  int64_t target, source, phase, dy, dx, at;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// visit(Place) for every kept weight, in an order that leaves a target's sources ascending.
template <class F>
void each_kept(const Kernel& k, const uint8_t* mask, const int64_t* slot, const F& visit) {
  const int64_t area = k.rows * k.cols;
  std::vector<Place> taps(area);
  for (int64_t i = 0; i < area; ++i) {
    const int64_t y = i / k.cols, x = i % k.cols;
    const int64_t ty = y * k.dilation[0] - k.padding[0], tx = x * k.dilation[1] - k.padding[1];
    const int64_t dy = floor_div(ty, k.stride[0]), dx = floor_div(tx, k.stride[1]);
    const int64_t py = ty - dy * k.stride[0], px = tx - dx * k.stride[1];
    const int64_t phase = py * k.stride[1] + px, at = y * k.steps[2] + x * k.steps[3];
    taps[i] = k.transposed ? Place{phase * k.inputs, 0, 0, -dy, -dx, at}
                           : Place{0, 0, slot[phase], dy, dx, at};
  }
  for (int64_t o = 0; o < k.outputs; ++o)
    for (int64_t i = 0; i < k.inputs; ++i, mask += area)
      for (int64_t j = 0; j < area; ++j)
        if (mask[j]) {
          Place p = taps[j];
          p.target += k.transposed ? i : o;
          p.source = k.transposed ? o : i;
          p.at += o * k.steps[0] + i * k.steps[1];
          visit(p);
        }
}

// Where the weights of `at` lie in the packed source, in bytes.
inline int64_t offset_of(const Geometry& g, const Place& p, int64_t size) {
  const int64_t row = ((p.source % g.cb) * g.phases + p.phase) * g.packed_rows() + p.dy - g.min_y;
  return (row * g.pitch() + (p.dx - g.min_x) * g.lanes) * size;
}

// offsets, at: (weights); segments, ranges: see passes.h. Returns how many segments there are.
// keep_empty: list targets without any weight too, since their sums are zero and must be written.
inline int64_t list_weights(const Geometry& g, const Kernel& k, const uint8_t* mask,
    const int64_t* slot, int64_t size, bool keep_empty, int32_t* offsets, int32_t* at,
    Segment* segments, int32_t* ranges) {
  const int64_t keys = g.nob * g.ncb * g.ob;
  std::vector<int32_t> count(keys), begin(keys);
  const auto key_of = [&](const Place& p) {
    return (p.target / g.ob * g.ncb + p.source / g.cb) * g.ob + p.target % g.ob;
  };
  each_kept(k, mask, slot, [&](const Place& p) { ++count[key_of(p)]; });
  std::vector<int32_t> first(g.nob * g.ob, -1), last(g.nob * g.ob, -1);
  for (int64_t ob = 0; ob < g.nob; ++ob)
    for (int64_t cb = 0; cb < g.ncb; ++cb)
      for (int64_t t = 0; t < g.ob; ++t)
        if (count[(ob * g.ncb + cb) * g.ob + t]) {
          if (first[ob * g.ob + t] < 0) first[ob * g.ob + t] = cb;
          last[ob * g.ob + t] = cb;
        }
  int32_t total = 0;
  int64_t n = 0;
  std::vector<int32_t> order;
  for (int64_t ob = 0; ob < g.nob; ++ob)
    for (int64_t cb = 0; cb < g.ncb; ++cb) {
      const int64_t block = ob * g.ncb + cb, real = std::min(g.ob, g.planes() - ob * g.ob);
      const int32_t* counts = count.data() + block * g.ob;
      ranges[block] = n;
      order.clear();
      for (int64_t t = 0; t < real; ++t)
        if (counts[t] || (keep_empty && cb == 0 && first[ob * g.ob + t] < 0)) order.push_back(t);
      // by count: how often a loop turns then rarely changes from one to the next
      std::stable_sort(order.begin(), order.end(),
          [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
      for (const int32_t t : order) {
        const int64_t whole = ob * g.ob + t;
        int32_t flags = first[whole] < 0 || first[whole] == cb ? FIRST : 0;
        if (first[whole] < 0 || last[whole] == cb) flags |= LAST;
        segments[n++] = {t, total, counts[t], flags};
        begin[block * g.ob + t] = total;
        total += counts[t];
      }
    }
  ranges[g.nob * g.ncb] = n;
  each_kept(k, mask, slot, [&](const Place& p) {
    const int32_t to = begin[key_of(p)]++;
    offsets[to] = offset_of(g, p, size);
    at[to] = p.at;
  });
  return n;
}

} // namespace

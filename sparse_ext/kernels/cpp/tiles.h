// SPDX-License-Identifier: MIT
// Forward pass and input gradient: every target pixel is a sum over the kept blocks of its row.
#pragma once

#include "planes.h"

namespace {

// A kept block, for one row: where its source begins, and its weights.
struct Read {
  const float* source;
  const float* weights;
};

// P neighbouring pixels of a block of target channels: out[pixel][channel][lane].
// Weights are [target][source channel], or [source][target] (BY_SOURCE).
template <int P, bool BY_SOURCE>
void tile(const Read* reads, int64_t count, int64_t offset, const float* start, float* out) {
  for (int first = 0; first < B; first += OUTS) {
    V acc[OUTS][P];
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p)
        acc[o][p] = start[first + o] - V{};
    for (int64_t k = 0; k < count; ++k) {
      const float* s = reads[k].source + offset;
      const float* w = reads[k].weights + first * (BY_SOURCE ? 1 : B);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) {
        V x[P];
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p)
          x[p] = load<V>(s + (p * B + i) * L);
#pragma GCC unroll 8
        for (int o = 0; o < OUTS; ++o) {
          const V weight = w[BY_SOURCE ? i * B + o : o * B + i] - V{};
#pragma GCC unroll 3
          for (int p = 0; p < P; ++p)
            acc[o][p] += weight * x[p];
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p)
        store(out + (p * B + first + o) * L, acc[o][p]);
  }
}

using TileFunction = void (*)(const Read*, int64_t, int64_t, const float*, float*);
constexpr TileFunction TILES[2][COLS] = {
    {tile<1, false>, tile<2, false>, tile<3, false>}, {tile<1, true>, tile<2, true>, tile<3, true>}};

// One pixel of a tile, [channel][lane], to the lanes' places in the target (null: nowhere).
void write_pixel(const float* out, float* const* to, int64_t offset, int channels) {
  for (int half = 0; half < L; half += 8) {
    V8 v[8];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i)
      v[i] = load<V8>(out + i * L + half);
    transpose(v);
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) {
      if (!to[half + l])
        continue;
      if (channels == B)
        store(to[half + l] + offset, v[l]);
      else
        std::memcpy(to[half + l] + offset, &v[l], channels * sizeof(float));
    }
  }
}

struct Pass {
  const Geometry& g;
  const float* bias;
  const float* weights; // of all kept blocks
  bool by_source;
  const Entry* entries;
  const int32_t* ptr; // entries of target phase and block, in that order
  float* dst;
};

// The blocks of [begin, end) whose source row exists for target row `a`; sorted by row.
int64_t reads_of(const Pass& p, const Planes& planes, bool whole, int begin, int end, int64_t a,
    Read* reads) {
  const int64_t base = a * p.g.src_step_y;
  while (whole && begin < end && base + p.entries[begin].row < 0)
    ++begin;
  while (whole && begin < end && base + p.entries[end - 1].row >= p.g.src_h)
    --end;
  for (int k = begin; k < end; ++k) {
    const Entry& e = p.entries[k];
    const float* row = planes.row(e.plane, a + e.shift_y);
    reads[k - begin] = {row + (e.shift_x - p.g.min_x) * PIXEL, p.weights + e.block * B * B};
  }
  return end - begin;
}

// Target row `a` of all strips, of one block of target channels in one phase.
void row_of_block(const Pass& p, const Cut& c, const Task& t, const Planes& planes, int64_t phase,
    int64_t block, int64_t a, Read* reads) {
  const Geometry& g = p.g;
  const int64_t phase_y = phase / g.dst_step_x, phase_x = phase % g.dst_step_x;
  const int64_t width = ceil_div(g.dst_w - phase_x, g.dst_step_x), channel = block * B;
  float* to[L] = {};
  for (int l = 0; l < t.lanes; ++l) {
    const int64_t y = (t.row[l] + a) * g.dst_step_y + phase_y;
    if (y < g.dst_h)
      to[l] = p.dst + ((t.image[l] * g.dst_h + y) * g.dst_w + phase_x) * g.dst_c + channel;
  }
  const int channels = static_cast<int>(std::min<int64_t>(B, g.dst_c - channel));
  float start[B] = {};
  if (p.bias)
    std::memcpy(start, p.bias + channel, channels * sizeof(float));
  const int32_t* range = p.ptr + phase * ceil_div(g.dst_c, B) + block;
  const int64_t count = reads_of(p, planes, c.strips == 1, range[0], range[1], a, reads);
  if (count == 0) {
    for (int l = 0; l < t.lanes; ++l)
      for (int64_t x = 0; to[l] && x < width; ++x)
        std::memcpy(to[l] + x * g.dst_step_x * g.dst_c, start, channels * sizeof(float));
    return;
  }
  const int64_t tiles = ceil_div(width, COLS);
  alignas(64) float out[COLS * PIXEL];
  for (int64_t j = 0; j < tiles; ++j) {
    const int64_t x = width * j / tiles, cols = width * (j + 1) / tiles - x;
    TILES[p.by_source][cols - 1](reads, count, x * PIXEL, start, out);
    for (int64_t col = 0; col < cols; ++col)
      write_pixel(out + col * PIXEL, to, (x + col) * g.dst_step_x * g.dst_c, channels);
  }
}

void run_pass(const Pass& p, const float* src, const int32_t* phases) {
  const Geometry& g = p.g;
  const Cut c = cut(g);
  const Source source = source_of(g, src, phases);
  const Rows rows = rows_of(g, c);
  const int64_t blocks = ceil_div(g.dst_c, B), dst_phases = g.dst_step_y * g.dst_step_x;
  const int64_t step = rows_at_once(g, c, source.row_floats(), source.row_floats());
  const int64_t ring = std::clamp<int64_t>(rows.high - rows.low, 1, step + g.max_y - g.min_y);
  int32_t most = 0;
  for (int64_t i = 0; i < blocks * dst_phases; ++i)
    most = std::max(most, p.ptr[i + 1] - p.ptr[i]);
  at::parallel_for(0, c.tasks, 1, [&](int64_t begin, int64_t end) {
    float* data = scratch<float>(0, ring * source.row_floats());
    Read* reads = scratch<Read>(1, most);
    for (int64_t index = begin; index < end; ++index) {
      const Task t = task_of(g, c, index);
      Planes planes = planes_of(source, data, ring, rows.low);
      for (int64_t a0 = 0; a0 < c.rows; a0 += step) {
        const int64_t a1 = std::min(a0 + step, c.rows);
        advance(source, t, planes, std::max(a0 + g.min_y, rows.low),
            std::min(a1 + g.max_y, rows.high));
        for (int64_t phase = 0; phase < dst_phases; ++phase)
          for (int64_t block = 0; block < blocks; ++block)
            for (int64_t a = a0; a < a1; ++a)
              row_of_block(p, c, t, planes, phase, block, a, reads);
      }
    }
  });
}

} // namespace

// SPDX-License-Identifier: MIT
// Forward pass and input gradient: every target pixel is a sum over the kept blocks of its row.
#pragma once

#include "planes.h"

namespace {

struct Tile {
  const float* planes; // at the tile's first pixel and image, shifts zero
  const Chunk* chunk;
  const Entry* entries;
  const float* weights; // 64 per entry: 8 vectors of target channels
  int count;
  V start;    // bias
  float* dst; // at the tile's first pixel and image
  int64_t pixel_stride, image_stride;
  int lanes; // target channels that exist
};

// Out of line: its calls would keep the accumulators out of registers.
__attribute__((noinline)) void store_part(const Tile& t, const V* acc, int images, int cols) {
  for (int r = 0; r < images; ++r)
    for (int c = 0; c < cols; ++c)
      std::memcpy(
          t.dst + r * t.image_stride + c * t.pixel_stride,
          acc + r * cols + c,
          t.lanes * sizeof(float));
}

template <int R, int C>
void tile(const Tile& t) {
  V acc[R * C];
#pragma GCC unroll 32
  for (int j = 0; j < R * C; ++j)
    acc[j] = t.start;
  const int64_t step = t.chunk->image_stride, rows = t.chunk->row_stride;
  const float* weights = t.weights;
  for (int k = 0; k < t.count; ++k, weights += B * B) {
    const Entry& e = t.entries[k];
    const float* s = t.planes + e.plane * t.chunk->plane_stride + e.shift_y * rows + e.shift_x * B;
    const float* image[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      image[r] = s + r * step;
      opaque(image[r]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) {
      const V w = load(weights + i * B);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c)
          acc[r * C + c] += w * image[r][c * B + i];
    }
  }
  if (t.lanes < B) {
    V copy[R * C]; // only this one has an address
#pragma GCC unroll 32
    for (int j = 0; j < R * C; ++j)
      copy[j] = acc[j];
    return store_part(t, copy, R, C);
  }
#pragma GCC unroll 32
  for (int j = 0; j < R * C; ++j)
    store(t.dst + j / C * t.image_stride + j % C * t.pixel_stride, acc[j]);
}

// Images of a tile: each takes a register for its address.
constexpr int images_of(int cols) {
  return std::clamp(TILE / cols, 1, 7);
}

using TileFunction = void (*)(const Tile&);

template <int C>
constexpr TileFunction whole() {
  return tile<images_of(C), C>;
}

template <int C>
constexpr TileFunction single() {
  return tile<1, C>;
}

template <int... C>
TileFunction choose(int cols, bool many, std::integer_sequence<int, C...>) {
  static constexpr TileFunction table[2][sizeof...(C)] = {
      {single<C + 1>()...}, {whole<C + 1>()...}};
  return table[many][cols - 1];
}

TileFunction choose(int cols, bool many) {
  return choose(cols, many, std::make_integer_sequence<int, (MAX_COLS < TILE ? MAX_COLS : TILE)>{});
}

// Columns of a tile such that a row of `width` pixels is cut evenly.
int64_t tile_cols(int64_t width) {
  const int64_t most = std::min(MAX_COLS, TILE);
  return ceil_div(width, ceil_div(width, most));
}

struct Pass {
  const Geometry& g;
  const float* bias;
  const float* weights;
  const Entry* entries;
  const int32_t* ptr; // entries of target phase and block, in that order
  float* dst;
};

// One target row of one block of target channels in one phase.
void row_of_block(const Pass& p, const Chunk& k, const float* planes, int64_t phase, int64_t block,
    int64_t a) {
  const Geometry& g = p.g;
  const int64_t phase_y = phase / g.dst_step_x, phase_x = phase % g.dst_step_x;
  const int64_t y = a * g.dst_step_y + phase_y, width = ceil_div(g.dst_w - phase_x, g.dst_step_x);
  if (y >= g.dst_h || width <= 0)
    return;
  const int32_t* range = p.ptr + phase * ceil_div(g.dst_c, B) + block;
  int begin = range[0], end = range[1];
  valid(p.entries, g, a, begin, end);
  const int64_t channel = block * B;
  Tile t;
  t.chunk = &k;
  t.entries = p.entries + begin;
  t.weights = p.weights + static_cast<int64_t>(begin) * B * B;
  t.count = end - begin;
  t.lanes = static_cast<int>(std::min<int64_t>(B, g.dst_c - channel));
  t.start = V{};
  if (p.bias)
    std::memcpy(&t.start, p.bias + channel, t.lanes * sizeof(float));
  t.pixel_stride = g.dst_step_x * g.dst_c;
  t.image_stride = g.dst_h * g.dst_w * g.dst_c;
  const int64_t cols = tile_cols(width);
  for (int64_t x = 0; x < width; x += cols) {
    const int now = static_cast<int>(std::min(cols, width - x));
    const int most = images_of(now);
    for (int64_t n = 0; n < k.images;) {
      const bool many = k.images - n >= most;
      t.planes = planes + (a - k.row0) * k.row_stride + n * k.image_stride + (x - g.min_x) * B;
      t.dst = p.dst + (k.n0 + n) * t.image_stride + channel +
          (y * g.dst_w + x * g.dst_step_x + phase_x) * g.dst_c;
      choose(now, many)(t);
      n += many ? most : 1;
    }
  }
}

void run_pass(const Pass& p, const float* src, const int32_t* phases) {
  const Geometry& g = p.g;
  const Cut c = cut(g, images_of(static_cast<int>(tile_cols(plane_cols(g)))));
  const int64_t blocks = ceil_div(g.dst_c, B), dst_phases = g.dst_step_y * g.dst_step_x;
  at::parallel_for(0, c.tasks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const Chunk k = chunk_of(g, c, task);
      float* planes = scratch(0, g.slots * ceil_div(g.src_c, B) * k.plane_stride + B);
      pack(g, k, src, phases, planes);
      for (int64_t phase = 0; phase < dst_phases; ++phase)
        for (int64_t block = 0; block < blocks; ++block)
          for (int64_t a = k.a0; a < k.a1; ++a)
            row_of_block(p, k, planes, phase, block, a);
    }
  });
}

} // namespace

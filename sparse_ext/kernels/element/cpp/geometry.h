// SPDX-License-Identifier: MIT
// What a pass goes over. Activations lie in memory as [channel][row][column][image].
//
// A task is a tile of the target, `lanes` images of it: its sums stay in registers. The source
// around it is packed as [channel of the block][phase][row][column][lanes], small enough for the L1
// cache, where a kept weight is one broadcast and a multiply-add per vector of the tile.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "vectors.h"

namespace {

extern "C" {

struct Geometry { // as `Geometry` of sparse_ext/kernels/element/plan.py
  int64_t images, first, lanes, groups; // of the tensors; first of this pass, and groups of lanes
  int64_t sc, sh, sw, ssy, ssx; // source: channels, rows, columns, steps between its phases' rows
  int64_t tc, th, tw, tsy, tsx; // target
  int64_t min_y, max_y, min_x, max_x; // of the shifts
  int64_t phases; // of the source that are in use
  int64_t rows, cols; // of the largest tile, in pixels of a phase
  int64_t flat; // whether all rows of a tile are one run of vectors, with what lies between them
  int64_t cb, ncb; // source channels per block, blocks
  int64_t ob, nob; // target planes per block, blocks; a plane is a channel of a target's phase
  int64_t strips, coltiles; // tiles, vertically and horizontally
  int64_t threads;

  int64_t plane_rows() const { return (th + tsy - 1) / tsy; }
  int64_t plane_cols() const { return (tw + tsx - 1) / tsx; }
  int64_t planes() const { return tc * tsy * tsx; }
  int64_t tiles() const { return strips * coltiles; }
  int64_t packed_rows() const { return rows + max_y - min_y; }
  int64_t pitch() const { return (cols + max_x - min_x) * lanes; } // elements of a packed row
};

} // extern "C"

struct Tile { // rows [y0, y0 + rows) and columns of a target phase, images from `image` on
  int64_t image, y0, rows, x0, cols;

  Tile(const Geometry& g, int64_t group, int64_t tile)
      : image(g.first + group * g.lanes),
        y0(g.plane_rows() * (tile / g.coltiles) / g.strips),
        rows(g.plane_rows() * (tile / g.coltiles + 1) / g.strips - y0),
        x0(g.plane_cols() * (tile % g.coltiles) / g.coltiles),
        cols(g.plane_cols() * (tile % g.coltiles + 1) / g.coltiles - x0) {}

  int64_t runs(const Geometry& g) const { return g.flat ? 1 : rows; }
  int64_t vectors(const Geometry& g, int64_t width) const { // of a run
    const int64_t elements = (g.flat ? (rows - 1) * g.pitch() : 0) + cols * g.lanes;
    return (elements + width - 1) / width;
  }
  // Whether every pixel exists in every phase of the target.
  bool inside(const Geometry& g) const {
    return (y0 + rows) * g.tsy <= g.th && (x0 + cols) * g.tsx <= g.tw;
  }
};

// The packed source of a tile, in bytes of elements S.
template <class S>
struct Source {
  const Geometry& g;
  const int32_t* phases;
  const S* at;

  const S* pixel(int64_t channel, int64_t y, int64_t x, int64_t image) const {
    return at + ((channel * g.sh + y) * g.sw + x) * g.images + image;
  }

  static void copy(S* to, const S* from, int64_t pixels, int64_t lanes, int64_t step) {
    if (lanes * (int64_t)sizeof(S) == VECTOR) {
      for (int64_t i = 0; i < pixels; ++i, from += step, to += lanes)
        put((float*)to, get((const float*)from)); // moves bits, whatever they mean
    } else if (lanes == step) {
      std::memcpy(to, from, pixels * lanes * sizeof(S));
    } else if (lanes == 1) {
      for (int64_t i = 0; i < pixels; ++i, from += step) to[i] = *from;
    } else {
      for (int64_t i = 0; i < pixels; ++i, from += step, to += lanes)
        std::memcpy(to, from, lanes * sizeof(S));
    }
  }

  __attribute__((noinline)) void pack(const Tile& t, int64_t c0, int64_t c1, S* to) const {
    const int64_t rows = t.rows + g.max_y - g.min_y, cols = t.cols + g.max_x - g.min_x;
    const int64_t pitch = g.pitch(), step = g.ssx * g.images;
    const bool exact = g.lanes * (int64_t)sizeof(S) % VECTOR == 0;
    for (int64_t p = 0; p < g.phases; ++p) {
      const int64_t py = phases[2 * p], px = phases[2 * p + 1];
      int64_t b0 = 0, b1 = cols; // columns that exist
      while (b0 < cols && (t.x0 + b0 + g.min_x) * g.ssx + px < 0) ++b0;
      while (b1 > b0 && (t.x0 + b1 - 1 + g.min_x) * g.ssx + px >= g.sw) --b1;
      const int64_t x = (t.x0 + b0 + g.min_x) * g.ssx + px;
      const int64_t before = b0 * g.lanes * sizeof(S), end = exact ? cols * g.lanes : pitch;
      const int64_t after = (end - b1 * g.lanes) * sizeof(S);
      for (int64_t c = c0; c < c1; ++c) {
        S* row = to + ((c - c0) * g.phases + p) * g.packed_rows() * pitch;
        for (int64_t r = 0; r < rows; ++r, row += pitch) {
          const int64_t y = (t.y0 + r + g.min_y) * g.ssy + py;
          if (y < 0 || y >= g.sh || b0 >= b1) {
            std::memset(row, 0, end * sizeof(S));
            continue;
          }
          if (before) std::memset(row, 0, before);
          copy(row + b0 * g.lanes, pixel(c, y, x, t.image), b1 - b0, g.lanes, step);
          if (after) std::memset(row + b1 * g.lanes, 0, after);
        }
      }
    }
  }
};

// Memory that a later step reads, asked for a few rows at a time.
struct Ahead {
  struct Row {
    const char* at;
    int32_t items, step;
  };
  Row* rows;
  int64_t count = 0, done = 0;

  void some(int64_t n) {
    for (; n > 0 && done < count; --n, ++done) {
      const Row& row = rows[done];
      for (int32_t i = 0; i < row.items; ++i) _mm_prefetch(row.at + i * row.step, _MM_HINT_T1);
    }
  }
  void clear() { count = done = 0; }

  // `n` rows of `pixels`: rows lie `row` elements apart, pixels `step` times the images.
  template <class S>
  void add(const Geometry& g, const S* at, int64_t n, int64_t row, int64_t pixels, int64_t step) {
    const int64_t bytes = step * g.images * sizeof(S);
    const bool dense = g.lanes == g.images && step == 1;
    const int32_t items = dense ? ceil_div(pixels * bytes, 64) : pixels, apart = dense ? 64 : bytes;
    for (; n > 0; --n, at += row) rows[count++] = {(const char*)at, items, apart};
  }

  template <class S>
  void source(const Source<S>& s, const Tile& t, int64_t c0, int64_t c1) {
    const Geometry& g = s.g;
    for (int64_t p = 0; p < g.phases; ++p) {
      int64_t y0 = (t.y0 + g.min_y) * g.ssy + s.phases[2 * p];
      int64_t y1 = y0 + (t.rows + g.max_y - g.min_y) * g.ssy;
      while (y0 < 0) y0 += g.ssy;
      y1 = std::min(y1, g.sh);
      const int64_t n = ceil_div(y1 - y0, g.ssy), row = g.ssy * g.sw * g.images;
      const int64_t x = std::max<int64_t>(0, (t.x0 + g.min_x) * g.ssx + s.phases[2 * p + 1]);
      const S* at = s.pixel(c0, y0, x, t.image);
      for (int64_t c = c0; c < c1; ++c, at += g.sh * g.sw * g.images)
        add(g, at, n, row, t.cols + g.max_x - g.min_x, g.ssx);
    }
  }
  template <class S>
  void planes(const Geometry& g, const S* all, const Tile& t, int64_t first, int64_t planes,
      const char* which) { // null: all of them
    for (int64_t p = first; p < first + planes; ++p) {
      if (which && !which[p]) continue;
      const int64_t y = t.y0 * g.tsy + p / g.tc / g.tsx, x = t.x0 * g.tsx + p / g.tc % g.tsx;
      const S* at = all + ((p % g.tc * g.th + y) * g.tw + x) * g.images + t.image;
      const int64_t n = std::min(t.rows, ceil_div(g.th - y, g.tsy));
      add(g, at, n, g.tsy * g.tw * g.images, t.cols, g.tsx);
    }
  }
};

} // namespace

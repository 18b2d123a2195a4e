// SPDX-License-Identifier: MIT
// How a pass is cut into tasks, and what a task copies of its sources.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "vectors.h"

namespace {

constexpr int64_t PIXEL = B * L; // floats of a pixel of a plane
constexpr int64_t CACHE_BYTES = 480 << 10; // that the planes of a task may take

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

} // namespace

extern "C" {

// One kept block, as plan.py writes it.
struct Entry {
  int32_t plane; // slot of its source phase * source blocks + source block
  int32_t row; // of the source, that target row 0 reads
  int32_t shift_y, shift_x; // the same in rows and columns of the plane
  int32_t block; // its place among the gathered weights
};

// What a pass reads and writes, as compiled.py fills it in.
struct Geometry {
  int64_t images;
  int64_t src_c, src_h, src_w, src_step_y, src_step_x; // steps split the source into phases
  int64_t dst_c, dst_h, dst_w, dst_step_y, dst_step_x;
  int64_t min_y, max_y, min_x, max_x; // extent of the shifts
  int64_t slots; // source phases in use

  int64_t plane_rows() const { // of the target
    return ceil_div(dst_h, dst_step_y);
  }
  int64_t plane_cols() const {
    return ceil_div(dst_w, dst_step_x);
  }
};

} // extern "C"

namespace {

// Memory that a thread keeps from call to call.
template <class T>
T* scratch(int which, int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() {
      std::free(data);
    }
  };
  static thread_local Buffer buffers[2];
  Buffer& buffer = buffers[which];
  const int64_t size = ceil_div(count * sizeof(T), 64) * 64;
  if (buffer.size < size) {
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(64, size);
    buffer.size = buffer.data ? size : 0;
    if (!buffer.data)
      throw std::bad_alloc();
  }
  return static_cast<T*>(buffer.data);
}

// How the target is cut: images into strips of rows, and L strips to a task.
struct Cut {
  int64_t strips, rows, tasks;
};

// The cut that takes least time: few lanes without work, few rows that two strips both read.
Cut cut(const Geometry& g) {
  const int64_t height = g.plane_rows(), threads = at::get_num_threads();
  Cut best{};
  int64_t least = INT64_MAX;
  for (int64_t wanted = 1; wanted <= height; ++wanted) {
    const int64_t rows = ceil_div(height, wanted), strips = ceil_div(height, rows);
    const int64_t tasks = ceil_div(g.images * strips, L);
    const int64_t cost = ceil_div(tasks, threads) * (4 * rows + g.max_y - g.min_y);
    if (cost < least) {
      least = cost;
      best = {strips, rows, tasks};
    }
  }
  return best;
}

// What the lanes of a task work on: one column at a time, the same in all of them.
struct Task {
  int lanes; // in use
  int64_t image[L], row[L]; // row: first target row of the strip
};

Task task_of(const Geometry& g, const Cut& c, int64_t index) {
  Task t;
  t.lanes = static_cast<int>(std::min<int64_t>(L, g.images * c.strips - index * L));
  for (int l = 0; l < t.lanes; ++l) {
    t.image[l] = (index * L + l) / c.strips;
    t.row[l] = (index * L + l) % c.strips * c.rows;
  }
  return t;
}

// A channels_last tensor, its rows and columns split into phases of which `slots` are read.
struct Source {
  const float* data;
  int64_t channels, height, width, step_y, step_x;
  const int32_t* phases;
  int64_t slots, first_col, cols; // columns of a plane, those beside the tensor are zero

  int64_t blocks() const {
    return ceil_div(channels, B);
  }
  int64_t row_floats() const { // of all planes
    return slots * blocks() * cols * PIXEL;
  }
};

Source source_of(const Geometry& g, const float* data, const int32_t* phases) {
  return {data, g.src_c, g.src_h, g.src_w, g.src_step_y, g.src_step_x, phases, g.slots, g.min_x,
      g.plane_cols() + g.max_x - g.min_x};
}

// The last rows of a source, copied for the lanes of a task:
// data[slot * blocks + block][row modulo ring][column][channel of the block][lane].
struct Planes {
  float* data;
  int64_t ring, row_stride, plane_stride;
  int64_t next; // rows before it are present, counted from the first row of each strip
  int64_t base; // a multiple of ring, such that no row before it is present, nor one after 2 rings

  const float* row(int64_t plane, int64_t row) const {
    const int64_t place = row - base;
    return data + plane * plane_stride + (place < ring ? place : place - ring) * row_stride;
  }
};

Planes planes_of(const Source& s, float* data, int64_t ring, int64_t first) {
  const int64_t row_stride = s.cols * PIXEL;
  return {data, ring, row_stride, ring * row_stride, first, 0};
}

// K blocks of channels of one pixel, of all lanes (null: zeros).
template <int K>
inline void pack_blocks(
    const float* const* from, int64_t offset, float* to, int64_t plane_stride) {
  for (int half = 0; half < L; half += 8) {
    V8 v[K][8];
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k)
        v[k][l] = from[half + l] ? load<V8>(from[half + l] + offset + k * B) : V8{};
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) {
      transpose(v[k]);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i)
        store(to + k * plane_stride + i * L + half, v[k][i]);
    }
  }
}

// All blocks of a pixel, a cache line of channels at a time: images are often as far apart as
// lines that drive each other out of a cache.
inline void pack_pixel(const float* const* from, int64_t offset, int64_t channels, float* to,
    int64_t plane_stride) {
  for (; channels >= 2 * B; channels -= 2 * B, offset += 2 * B, to += 2 * plane_stride)
    pack_blocks<2>(from, offset, to, plane_stride);
  for (; channels >= B; channels -= B, offset += B, to += plane_stride)
    pack_blocks<1>(from, offset, to, plane_stride);
  if (channels) {
    float last[L][B] = {};
    const float* filled[L];
    for (int l = 0; l < L; ++l) {
      filled[l] = last[l];
      if (from[l])
        std::memcpy(last[l], from[l] + offset, channels * sizeof(float));
    }
    pack_blocks<1>(filled, 0, to, plane_stride);
  }
}

void pack_row(const Source& s, const Task& t, const Planes& p, int64_t row) {
  for (int64_t slot = 0; slot < s.slots; ++slot) {
    const int64_t phase_y = s.phases[2 * slot], phase_x = s.phases[2 * slot + 1];
    const float* from[L] = {};
    for (int l = 0; l < t.lanes; ++l) {
      const int64_t y = (t.row[l] + row) * s.step_y + phase_y;
      if (y >= 0 && y < s.height)
        from[l] = s.data + (t.image[l] * s.height + y) * s.width * s.channels;
    }
    const float* const nowhere[L] = {};
    float* to = const_cast<float*>(p.row(slot * s.blocks(), row));
    for (int64_t col = 0; col < s.cols; ++col, to += PIXEL) {
      const int64_t x = (col + s.first_col) * s.step_x + phase_x;
      const bool inside = x >= 0 && x < s.width;
      pack_pixel(inside ? from : nowhere, x * s.channels, s.channels, to, p.plane_stride);
    }
  }
}

// Makes rows [first, next) present; both never fall, and next - first <= ring.
void advance(const Source& s, const Task& t, Planes& p, int64_t first, int64_t next) {
  p.base = (first < 0 ? -ceil_div(-first, p.ring) : first / p.ring) * p.ring;
  for (p.next = std::max(p.next, first); p.next < next; ++p.next)
    pack_row(s, t, p, p.next);
}

// Source rows that exist, counted from the first row of each strip; further ones are zero, and
// where images are not cut no one reads them.
struct Rows {
  int64_t low, high;
};

Rows rows_of(const Geometry& g, const Cut& c) {
  if (c.strips > 1)
    return {g.min_y, c.rows + g.max_y};
  return {std::max<int64_t>(g.min_y, 0),
      std::min(c.rows + g.max_y, ceil_div(g.src_h, g.src_step_y))};
}

// Target rows that a task works on between two advances, for planes of so many floats per row.
int64_t rows_at_once(const Geometry& g, const Cut& c, int64_t row_floats, int64_t both) {
  const int64_t halo = (g.max_y - g.min_y) * row_floats;
  const int64_t fit = (CACHE_BYTES / 4 - halo) / both;
  return std::clamp<int64_t>(fit, 1, c.rows);
}

} // namespace

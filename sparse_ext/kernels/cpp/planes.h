// SPDX-License-Identifier: MIT
// Activations in planes of 8 channels: how a pass is cut into tasks, and what a task copies.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace {

constexpr int B = 8; // channels of a block
constexpr int MAX_COLS = 16; // pixels of a tile in one row
#ifdef __AVX512VL__
constexpr int TILE = 28; // accumulators; the rest of 32 registers holds weights
constexpr int GROUP = 3; // blocks whose weight gradient is summed at once, 8 accumulators each
#else
constexpr int TILE = 12;
constexpr int GROUP = 1;
#endif
constexpr int64_t CHUNK_BYTES = 320 << 10; // of packed activations per task

typedef float V __attribute__((vector_size(32)));

inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// Keeps the compiler from turning sums of this address and constants into addresses of their own:
// it would run out of registers for them.
inline void opaque(const float*& p) {
  asm("" : "+r"(p));
}

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
};

// What a pass reads and writes, as compiled.py fills it in.
struct Geometry {
  int64_t images;
  int64_t src_c, src_h, src_w, src_step_y, src_step_x; // steps split the source into phases
  int64_t dst_c, dst_h, dst_w, dst_step_y, dst_step_x;
  int64_t min_y, max_y, min_x, max_x; // extent of the shifts
  int64_t slots; // source phases in use
};

} // extern "C"

namespace {

// Memory that a thread keeps from call to call.
float* scratch(int which, int64_t floats) {
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() {
      std::free(data);
    }
  };
  static thread_local Buffer buffers[2];
  Buffer& buffer = buffers[which];
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.size = ceil_div(floats, 16) * 16;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, buffer.size * sizeof(float)));
    if (!buffer.data) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

// How the work is cut: tasks of `images` images and `rows` target rows.
struct Cut {
  int64_t images, rows, groups, strips;

  int64_t tasks() const {
    return groups * strips;
  }
};

// Rows and images of one task, and the strides of its packed source.
struct Chunk {
  int64_t n0, images, a0, a1; // target rows [a0, a1) of the phase plane
  int64_t row0, rows, cols; // rows and columns of the packed planes; row0 in plane rows
  int64_t image_stride, row_stride, plane_stride;
};

int64_t plane_rows(const Geometry& g) {
  return ceil_div(g.dst_h, g.dst_step_y);
}

int64_t plane_cols(const Geometry& g) {
  return ceil_div(g.dst_w, g.dst_step_x);
}

int64_t packed_cols(const Geometry& g) {
  return plane_cols(g) + g.max_x - g.min_x;
}

Cut cut(const Geometry& g, int64_t images) {
  Cut c;
  c.images = std::min(g.images, images);
  c.groups = ceil_div(g.images, c.images);
  const int64_t height = plane_rows(g), halo = g.max_y - g.min_y;
  const int64_t row_bytes = g.slots * ceil_div(g.src_c, B) * c.images * packed_cols(g) * B * 4;
  int64_t rows = std::max<int64_t>(CHUNK_BYTES / row_bytes - halo, 1 + halo);
  const int64_t wanted = ceil_div(at::get_num_threads(), c.groups);
  rows = std::min(rows, ceil_div(height, wanted));
  c.strips = ceil_div(height, std::min(rows, height));
  c.rows = ceil_div(height, c.strips);
  return c;
}

Chunk chunk_of(const Geometry& g, const Cut& c, int64_t task) {
  Chunk k;
  k.n0 = task / c.strips * c.images;
  k.images = std::min(c.images, g.images - k.n0);
  k.a0 = task % c.strips * c.rows;
  k.a1 = std::min(k.a0 + c.rows, plane_rows(g));
  const int64_t height = ceil_div(g.src_h, g.src_step_y);
  k.row0 = std::max<int64_t>(k.a0 + g.min_y, 0);
  k.rows = std::max<int64_t>(std::min(k.a1 + g.max_y, height) - k.row0, 0);
  k.cols = packed_cols(g);
  k.image_stride = k.cols * B;
  k.row_stride = k.images * k.image_stride;
  k.plane_stride = k.rows * k.row_stride;
  return k;
}

// Copies a pixel's channels into the planes, 8 to each; the last block is filled up with zeros.
inline void spread(const float* from, float* to, int64_t channels, int64_t plane_stride) {
  const int64_t whole = channels / B;
  for (int64_t b = 0; b < whole; ++b)
    store(to + b * plane_stride, load(from + b * B));
  if (channels % B) {
    V last = {};
    std::memcpy(&last, from + whole * B, channels % B * sizeof(float));
    store(to + whole * plane_stride, last);
  }
}

// planes[slot][block][row][image][column][8] of one chunk of a channels_last source.
void pack(
    const Geometry& g, const Chunk& k, const float* src, const int32_t* phases, float* planes) {
  const int64_t blocks = ceil_div(g.src_c, B);
  for (int64_t slot = 0; slot < g.slots; ++slot) {
    const int64_t phase_y = phases[2 * slot], phase_x = phases[2 * slot + 1];
    for (int64_t row = 0; row < k.rows; ++row) {
      const int64_t y = (k.row0 + row) * g.src_step_y + phase_y;
      if (y >= g.src_h)
        continue;
      for (int64_t n = 0; n < k.images; ++n) {
        const float* from = src + ((k.n0 + n) * g.src_h + y) * g.src_w * g.src_c;
        float* to =
            planes + slot * blocks * k.plane_stride + row * k.row_stride + n * k.image_stride;
        for (int64_t col = 0; col < k.cols; ++col, to += B) {
          const int64_t x = (col + g.min_x) * g.src_step_x + phase_x;
          if (x >= 0 && x < g.src_w)
            spread(from + x * g.src_c, to, g.src_c, k.plane_stride);
          else
            for (int64_t b = 0; b < blocks; ++b)
              store(to + b * k.plane_stride, V{});
        }
      }
    }
  }
}

// Entries of [begin, end) whose source row exists for target row `a`; they are sorted by row.
inline void valid(const Entry* entries, const Geometry& g, int64_t a, int& begin, int& end) {
  const int64_t base = a * g.src_step_y;
  while (begin < end && base + entries[begin].row < 0)
    ++begin;
  while (begin < end && base + entries[end - 1].row >= g.src_h)
    --end;
}

} // namespace

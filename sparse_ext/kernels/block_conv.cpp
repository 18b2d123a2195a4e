// SPDX-License-Identifier: MIT
// Convolution by the kept 8x8 blocks of its weight only: see sparse_ext/kernels/plan.py.
//
// Activations are channels_last in memory. A task copies a few images and rows of its source into
// planes of 8 channels (nChw8c, with zero columns for the padding, split into the phases of the
// stride), small enough for the L2 cache. There, neighbouring pixels are 32 bytes apart, so a tile
// of pixels is addressed by constants, and a block is 8 vectors times 8 broadcast scalars per
// pixel. Vector extensions of GCC and Clang instead of intrinsics: the flags of the build decide
// between AVX2 and AVX-512 (32 registers, scalars broadcast by the multiplication itself).

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
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

// -- forward pass and input gradient -----------------------------------------------------------

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

// -- weight gradient ---------------------------------------------------------------------------

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

} // namespace

extern "C" {

int64_t block_conv_threads() {
  return at::get_num_threads();
}

// coordinates: per entry (first output, first input, kernel position), int32.
// shape: outputs, inputs, positions; strides of the weight in that order.
// transposed: vectors run over input channels (input gradient), not over outputs (forward).
void block_conv_gather(const float* weight, const int64_t* shape, const int64_t* strides,
    const int32_t* coordinates, int64_t count, int64_t transposed, float* packed) {
  at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      const int32_t* at = coordinates + 3 * e;
      const float* from = weight + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
      const int64_t outs = std::min<int64_t>(B, shape[0] - at[0]);
      const int64_t ins = std::min<int64_t>(B, shape[1] - at[1]);
      float* to = packed + e * B * B;
      if (outs < B || ins < B)
        std::memset(to, 0, B * B * sizeof(float));
      const int64_t by_out = transposed ? B : 1, by_in = transposed ? 1 : B;
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t i = 0; i < ins; ++i)
          to[o * by_out + i * by_in] = from[o * strides[0] + i * strides[1]];
    }
  });
}

// dst = bias + the products of all entries; every element of dst is written.
void block_conv_pass(const Geometry* g, const float* src, const float* bias, const float* weights,
    const Entry* entries, const int32_t* ptr, const int32_t* phases, float* dst) {
  run_pass({*g, bias, weights, entries, ptr, dst}, src, phases);
}

// Floats that block_conv_weight_gradient needs as `sums`.
int64_t block_conv_sums(const Geometry* g, int64_t count) {
  const int64_t tasks = cut(*g, images_per_chunk(*g)).tasks();
  return std::min<int64_t>(tasks, at::get_num_threads()) * count * B * B;
}

// Gradient of the kept blocks, in the order of the entries of the forward pass, added up over
// images and pixels in an order that depends on the number of threads only. grad_weight: zeros.
void block_conv_weight_gradient(const Geometry* gp, const float* src, const float* grads,
    const Entry* entries, const int32_t* ptr, const int32_t* phases, int64_t count,
    const int64_t* shape, const int64_t* strides, const int32_t* coordinates, float* sums,
    float* grad_weight) {
  const Geometry& g = *gp;
  const Cut c = cut(g, images_per_chunk(g));
  const int64_t blocks = ceil_div(g.dst_c, B);
  const int64_t slots = std::min<int64_t>(c.tasks(), at::get_num_threads());
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
  at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      float* total = sums + e * B * B;
      for (int64_t slot = 1; slot < slots; ++slot)
        for (int64_t j = 0; j < B * B; ++j)
          total[j] += sums[(slot * count + e) * B * B + j];
      const int32_t* at = coordinates + 3 * e;
      float* to = grad_weight + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
      for (int64_t o = 0; o < std::min<int64_t>(B, shape[0] - at[0]); ++o)
        for (int64_t i = 0; i < std::min<int64_t>(B, shape[1] - at[1]); ++i)
          to[o * strides[0] + i * strides[1]] = total[i * B + o];
    }
  });
}

} // extern "C"

// SPDX-License-Identifier: MIT
// A whole pass: from source to target (forward, input gradient), or to a sum per kept weight.
#pragma once

#include "kinds.h"

namespace {

// The same list for every pass: see `lists.h`.
struct Lists {
  const Segment* segments;
  const int32_t* ranges; // [target block][source block]: its segments begin here; one more
  const int32_t* phases; // (row, column) of each phase of the source that is in use
};

template <class T>
class Pass {
 public:
  typedef typename T::S S;

  Pass(const Geometry& g, const Lists& lists)
      : g_(g), lists_(lists), where_(g.planes()), used_(g.planes()) {
    for (int64_t t = 0; t < g.planes(); ++t) {
      const int64_t phase = t / g.tc, channel = t % g.tc;
      where_[t] = ((channel * g.th + phase / g.tsx) * g.tw + phase % g.tsx) * g.images * sizeof(S);
    }
    for (int64_t block = 0; block < g.nob * g.ncb; ++block)
      for (int32_t i = lists.ranges[block]; i < lists.ranges[block + 1]; ++i)
        if (lists.segments[i].count) used_[block / g.ncb * g.ob + lists.segments[i].target] = 1;
  }

  void run(const S* source, const typename T::Entry* entries, S* target,
      const Epilogue& after) const {
    in_turns(g_.groups * g_.tiles() * g_.nob, g_.threads, [&](int64_t begin, int64_t end) {
      several({g_, lists_.phases, source}, entries, target, after, nullptr, nullptr, begin, end);
    });
  }

  // Input gradient, and weight gradients in `sums` as `dots` has them, from the layer's inputs.
  void both(const S* source, const typename T::Entry* entries, S* target, const Epilogue& after,
      const S* inputs, int64_t count, float* sums) const {
    std::fill(sums, sums + slots() * count, 0.f);
    in_parts(g_.groups * g_.tiles() * g_.nob, slots(), [&](int64_t begin, int64_t end, int64_t slot) {
      several({g_, lists_.phases, source}, entries, target, after, inputs, sums + slot * count,
          begin, end);
    });
  }

  // sums: [slot][weight], one slot for each thread.
  void dots(const S* source, const S* grads, const Entry* entries, int64_t count, float* sums) const {
    const int64_t tasks = g_.groups * g_.tiles();
    std::fill(sums, sums + slots() * count, 0.f);
    in_parts(tasks, slots(), [&](int64_t begin, int64_t end, int64_t slot) {
      Borrowed scratch;
      for (int64_t task = begin; task < end; ++task)
        one_dot(*scratch, {g_, lists_.phases, source}, grads, entries, sums + slot * count, task,
            task + 1 < end ? task + 1 : task);
    });
  }

  int64_t slots() const {
    return std::max<int64_t>(1, std::min(g_.threads, g_.groups * g_.tiles()));
  }

 private:
  enum { PACKED, SUMS, ROWS, PLANES, WHERE };

  int64_t packed_bytes() const { // with what the last run reads beyond its end
    return (g_.cb * g_.phases * g_.packed_rows() * g_.pitch()) * sizeof(S) + VECTOR;
  }
  bool exact() const { return g_.lanes * (int64_t)sizeof(S) % VECTOR == 0 && !g_.flat; }
  bool direct(const Tile& t, int64_t tsx) const {
    return exact() && t.inside(g_) &&
        (g_.lanes * (int64_t)sizeof(S) == VECTOR || (g_.lanes == g_.images && tsx == 1));
  }
  int64_t column_step() const { // bytes between two vectors of a target's row
    return g_.lanes * (int64_t)sizeof(S) == VECTOR ? g_.tsx * g_.images * (int64_t)sizeof(S) : VECTOR;
  }
  Tile tile(int64_t task) const { // groups share lines
    return Tile(g_, task / g_.nob % g_.groups, task / g_.nob / g_.groups);
  }
  Tile dot_tile(int64_t task) const { // groups share lines, sums do not grow with them
    return Tile(g_, task % g_.groups, task / g_.groups);
  }
  Ahead ahead(Scratch& scratch, int64_t more) const {
    const int64_t rows = g_.cb * g_.phases * g_.packed_rows() + more;
    return {(Ahead::Row*)scratch.take(ROWS, rows * sizeof(Ahead::Row))};
  }

  void several(const Source<S>& source, const typename T::Entry* entries, S* target,
      const Epilogue& after, const S* inputs, float* weights, int64_t begin, int64_t end) const {
    Borrowed scratch;
    for (int64_t task = begin; task < end; ++task)
      one(*scratch, source, entries, target, after, inputs, weights, task,
          task + 1 < end ? task + 1 : task);
  }

  void one(Scratch& scratch, const Source<S>& source, const typename T::Entry* entries, S* target,
      const Epilogue& after, const S* inputs, float* weights, int64_t task, int64_t next) const {
    const int64_t ob = task % g_.nob, t0 = ob * g_.ob;
    const Tile t = tile(task);
    const int64_t runs = t.runs(g_), vectors = t.vectors(g_, T::WIDTH), size = sizeof(S);
    S* packed = (S*)scratch.take(PACKED, packed_bytes());
    char* sums = scratch.take(SUMS, g_.ob * runs * vectors * T::SUMS);
    Ahead rows = ahead(scratch, 2 * g_.ob * g_.rows);
    const bool straight = direct(t, g_.tsx);
    const int64_t first = ((t.y0 * g_.tsy) * g_.tw + t.x0 * g_.tsx) * g_.images + t.image;
    const int64_t target_row = g_.tsy * g_.tw * g_.images * size;
    Inputs own{(const char*)(inputs + first), where_.data() + t0, target_row, column_step(), weights};
    if (inputs && !(straight && g_.ncb < 3)) {
      own.at = pack_planes(scratch, t, inputs, t0, planes_from(t0), vectors);
      own.row = vectors * VECTOR;
      own.col = VECTOR;
      own.where = packed_where(scratch, planes_from(t0), runs * own.row);
    }
    for (int64_t cb = 0; cb < g_.ncb; ++cb) {
      const int64_t c0 = cb * g_.cb, c1 = std::min(g_.sc, c0 + g_.cb);
      source.pack(t, c0, c1, packed);
      rows.clear();
      if (cb + 1 < g_.ncb) {
        rows.source(source, t, c1, std::min(g_.sc, c1 + g_.cb));
      } else if (next != task) {
        rows.source(source, tile(next), 0, std::min(g_.sc, g_.cb));
        const int64_t p0 = next % g_.nob * g_.ob;
        const auto ask = [&](const S* all, const char* which) {
          if (all) rows.planes(g_, all, tile(next), p0, planes_from(p0), which);
        };
        ask(inputs, used_.data());
        ask((const S*)after.residual, nullptr);
      }
      const int32_t* range = lists_.ranges + ob * g_.ncb + cb;
      const Products products{lists_.segments + range[0], range[1] - range[0], (const char*)packed,
          g_.pitch() * size, sums, straight ? (char*)(target + first) : nullptr, where_.data() + t0,
          target_row, column_step(), straight && streamed(target),
          {from(after.scale, t0), from(after.bias, t0), from((const S*)after.residual, first),
              after.relu},
          &rows};
      if (inputs) Tiled<T>::both(runs, vectors)(products, own, entries);
      else Tiled<T>::sum(runs, vectors)(products, entries);
    }
    if (!straight)
      finish(t, t0, (const float*)sums, runs * vectors * (T::SUMS / 4), vectors * (T::SUMS / 4),
          target, after);
  }

  int64_t planes_from(int64_t t0) const { return std::min(g_.planes() - t0, g_.ob); }

  // Whether results go past the caches.
  bool streamed(const S* target) const {
    const int64_t image = g_.images * sizeof(S);
    return (uintptr_t)target % VECTOR == 0 && image % VECTOR == 0 &&
        g_.tc * g_.th * g_.tw * image > KEPT;
  }

  // Finished sums of a tile to where they belong.
  void finish(const Tile& t, int64_t t0, const float* sums, int64_t per_target, int64_t per_run,
      S* target, const Epilogue& after) const {
    for (int64_t p = t0; p < std::min(g_.planes(), t0 + g_.ob); ++p, sums += per_target) {
      const int64_t phase = p / g_.tc, channel = p % g_.tc;
      const int64_t py = phase / g_.tsx, px = phase % g_.tsx;
      // of forward passes, which have one phase
      const float scale = after.scale ? after.scale[p] : 1, bias = after.bias ? after.bias[p] : 0;
      for (int64_t r = 0; r < t.rows; ++r) {
        const int64_t y = (t.y0 + r) * g_.tsy + py;
        if (y >= g_.th) continue;
        const float* from = sums + r * (g_.flat ? g_.pitch() : per_run);
        const int64_t row = (channel * g_.th + y) * g_.tw * g_.images + t.image;
        if (g_.tsx == 1 && g_.lanes == g_.images) {
          emit(from, t.cols * g_.lanes, row + t.x0 * g_.images, target, scale, bias, after);
          continue;
        }
        for (int64_t x = 0; x < t.cols; ++x) {
          const int64_t to = (t.x0 + x) * g_.tsx + px;
          if (to < g_.tw)
            emit(from + x * g_.lanes, g_.lanes, row + to * g_.images, target, scale, bias, after);
        }
      }
    }
  }

  template <class P>
  static const P* from(const P* all, int64_t first) {
    return all ? all + first : nullptr;
  }

  static void emit(const float* from, int64_t n, int64_t at, S* target, float scale, float bias,
      const Epilogue& after) {
    const S* residual = (const S*)after.residual;
    for (int64_t i = 0; i < n; i += L) {
      const int64_t m = std::min<int64_t>(L, n - i);
      V v = fma(m == L ? get(from + i) : get(from + i, m), all(scale), all(bias));
      if (residual) v = add(v, m == L ? get(residual + at + i) : get(residual + at + i, m));
      if (after.relu) v = rectified(v);
      if (m == L) put(target + at + i, v);
      else put(target + at + i, v, m);
    }
  }

  void one_dot(Scratch& scratch, const Source<S>& source, const S* grads, const Entry* entries,
      float* sums, int64_t task, int64_t next) const {
    const Tile t = dot_tile(task);
    const int64_t runs = t.runs(g_), vectors = t.vectors(g_, T::WIDTH);
    S* packed = (S*)scratch.take(PACKED, packed_bytes());
    Ahead rows = ahead(scratch, g_.tc * g_.rows);
    const bool straight = direct(t, 1) && g_.ncb < 3;
    const int64_t first = (t.y0 * g_.tw + t.x0) * g_.images + t.image, size = sizeof(S);
    const char* from = (const char*)(grads + first);
    const int64_t* where = where_.data();
    int64_t row = g_.tw * g_.images * size, column = column_step();
    if (!straight) {
      from = pack_planes(scratch, t, grads, 0, g_.tc, vectors);
      row = vectors * VECTOR;
      column = VECTOR;
      where = packed_where(scratch, g_.tc, runs * row);
    }
    for (int64_t cb = 0; cb < g_.ncb; ++cb) {
      const int64_t c0 = cb * g_.cb, c1 = std::min(g_.sc, c0 + g_.cb);
      source.pack(t, c0, c1, packed);
      rows.clear();
      if (cb + 1 < g_.ncb) {
        rows.source(source, t, c1, std::min(g_.sc, c1 + g_.cb));
      } else if (next != task) {
        rows.source(source, dot_tile(next), 0, std::min(g_.sc, g_.cb));
        rows.planes(g_, grads, dot_tile(next), 0, g_.tc, used_.data());
      }
      for (int64_t ob = 0; ob < g_.nob; ++ob) {
        const int32_t* range = lists_.ranges + ob * g_.ncb + cb;
        const Dots dots{lists_.segments + range[0], range[1] - range[0], (const char*)packed,
            g_.pitch() * size, from, where + ob * g_.ob, row, column, sums, &rows};
        Tiled<T>::dot_function(runs, vectors)(dots, entries);
      }
    }
  }

  // [plane of the target][row of the tile][vector], zero where there is no pixel; planes that no
  // weight uses are left out.
  const char* pack_planes(Scratch& scratch, const Tile& t, const S* planes, int64_t first,
      int64_t count, int64_t vectors) const {
    const int64_t run = vectors * T::WIDTH;
    S* to = (S*)scratch.take(PLANES, count * t.rows * run * sizeof(S));
    const char* all = (const char*)to;
    for (int64_t p = first; p < first + count; ++p) {
      if (!used_[p]) {
        to += t.rows * run;
        continue;
      }
      const int64_t py = p / g_.tc / g_.tsx, x = t.x0 * g_.tsx + p / g_.tc % g_.tsx;
      const int64_t cols = std::max<int64_t>(0, std::min(t.cols, ceil_div(g_.tw - x, g_.tsx)));
      for (int64_t r = 0; r < t.rows; ++r, to += run) {
        const int64_t y = (t.y0 + r) * g_.tsy + py, full = y < g_.th ? cols : 0;
        const S* from = planes + ((p % g_.tc * g_.th + y) * g_.tw + x) * g_.images + t.image;
        Source<S>::copy(to, from, full, g_.lanes, g_.tsx * g_.images);
        std::memset(to + full * g_.lanes, 0, (run - full * g_.lanes) * sizeof(S));
      }
    }
    return all;
  }

  const int64_t* packed_where(Scratch& scratch, int64_t planes, int64_t step) const {
    int64_t* where = (int64_t*)scratch.take(WHERE, planes * sizeof(int64_t));
    for (int64_t p = 0; p < planes; ++p) where[p] = p * step;
    return where;
  }

  const Geometry& g_;
  const Lists& lists_;
  std::vector<int64_t> where_;
  std::vector<char> used_; // whether any weight is kept for a plane of the target
};

} // namespace

// SPDX-License-Identifier: MIT
// Threads and their scratch memory. Neither OpenMP nor torch is needed, so that a library built
// once runs beside any version of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

constexpr int64_t KEPT = 1 << 20; // bytes of a result that may still be cached when it is read

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of one thread while a call lasts; kept for the next one.
class Scratch {
 public:
  static constexpr int SLOTS = 5;

  char* take(int slot, int64_t bytes) {
    Block& block = blocks_[slot];
    if (block.size < bytes) {
      std::free(block.at);
      block.size = ceil_div(bytes, PAGE) * PAGE;
      block.at = static_cast<char*>(std::aligned_alloc(PAGE, block.size));
      if (!block.at) {
        block.size = 0;
        throw std::bad_alloc();
      }
      std::fill(block.at, block.at + block.size, 0); // what is read beyond a row is finite
    }
    return block.at;
  }
  ~Scratch() {
    for (Block& block : blocks_) std::free(block.at);
  }

 private:
  static constexpr int64_t PAGE = 4096;
  struct Block {
    char* at = nullptr;
    int64_t size = 0;
  };
  Block blocks_[SLOTS];
};

class Borrowed { // a scratch of the pool
 public:
  Borrowed() {
    std::lock_guard<std::mutex> held(lock());
    if (pool().empty()) {
      own_ = new Scratch;
    } else {
      own_ = pool().back();
      pool().pop_back();
    }
  }
  ~Borrowed() {
    std::lock_guard<std::mutex> held(lock());
    pool().push_back(own_);
  }
  Borrowed(const Borrowed&) = delete;
  Scratch& operator*() { return *own_; }

 private:
  static std::vector<Scratch*>& pool() {
    static auto* all = new std::vector<Scratch*>; // never torn down: threads may outlive main
    return *all;
  }
  static std::mutex& lock() {
    static auto* one = new std::mutex;
    return *one;
  }
  Scratch* own_;
};

// work(begin, end, slot) for `parts` ranges of [0, count), each by a thread of its own.
template <class F>
void in_parts(int64_t count, int64_t parts, const F& work) {
  parts = std::max<int64_t>(1, std::min(parts, count));
  std::vector<std::thread> others;
  for (int64_t i = 1; i < parts; ++i)
    others.emplace_back([&, i] { work(count * i / parts, count * (i + 1) / parts, i); });
  work(0, count / parts, 0);
  for (std::thread& other : others) other.join();
}

// work(i) for i in [0, count), by several threads if there is enough of it.
template <class F>
void each_part(int64_t count, int64_t threads, const F& work) {
  in_parts(count, std::min(threads, count / (1 << 15) + 1), [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// work(begin, end) for short ranges of [0, count), taken by whichever thread is free.
template <class F>
void in_turns(int64_t count, int64_t threads, const F& work) {
  const int64_t size = threads > 1 ? std::max<int64_t>(1, count / (threads * 8)) : count;
  std::atomic<int64_t> next{0};
  in_parts(std::min(threads, count), threads, [&](int64_t, int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(size)) < count;)
      work(begin, std::min(count, begin + size));
  });
}

} // namespace

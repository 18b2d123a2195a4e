// SPDX-License-Identifier: MIT
// Threads and their scratch memory. Neither OpenMP nor torch is needed to build it, so that a library
// built once runs beside any version of them; torch's OpenMP threads are used where it has some.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
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

// torch's threads: GOMP_parallel of the OpenMP library that torch uses. They go on spinning for a
// while after each of its operations, so that other threads would have to share the cores with them.
struct Team {
  using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  Parallel parallel = nullptr;
  pid_t process = 0; // they do not survive a fork

  static Team& torchs() {
    static Team one;
    return one;
  }
  bool usable() const { return parallel && process == getpid(); }
  // As Workers::run.
  template <class F>
  void run(int64_t parts, int64_t threads, const F& work) const {
    struct Job {
      const F& work;
      const int64_t parts;
      std::atomic<int64_t> next{0};
    } job{work, parts};
    parallel([](void* data) {
      Job& all = *static_cast<Job*>(data);
      for (int64_t part; (part = all.next++) < all.parts;) all.work(part);
    }, &job, (unsigned)threads, 0);
  }
};

// Threads that wait for work and are never torn down. Whoever brings a job does what nobody else has
// begun: a thread that other programs keep from running delays nothing.
class Workers {
 public:
  // work(part) for every part of [0, parts), by up to `threads` threads.
  template <class F>
  static void run(int64_t parts, int64_t threads, const F& work) {
    if (Team::torchs().usable()) return Team::torchs().run(parts, threads, work);
    Workers& all = here();
    Job job{[&](int64_t part) { work(part); }, parts};
    std::unique_lock<std::mutex> held(all.lock_);
    for (; all.count_ < threads - 1; ++all.count_) std::thread([&all] { all.serve(); }).detach();
    all.jobs_.push_back(&job);
    all.wake_.notify_all();
    while (job.next < parts) all.one(job, held);
    all.done_.wait(held, [&] { return !job.running; });
  }

 private:
  struct Job {
    std::function<void(int64_t)> work;
    int64_t parts, next = 0, running = 0;
  };

  static Workers& here() { // of this process: threads do not survive a fork
    static Workers* all = nullptr;
    static std::mutex* lock = new std::mutex;
    std::lock_guard<std::mutex> held(*lock);
    if (!all || all->process_ != getpid()) all = new Workers;
    return *all;
  }
  void serve() {
    std::unique_lock<std::mutex> held(lock_);
    for (;;) {
      wake_.wait(held, [&] { return !jobs_.empty(); });
      one(*jobs_.front(), held);
    }
  }
  // The next part of a job that has one.
  void one(Job& job, std::unique_lock<std::mutex>& held) {
    const int64_t part = job.next++;
    if (job.next == job.parts) jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    ++job.running;
    held.unlock();
    job.work(part);
    held.lock();
    if (!--job.running) done_.notify_all();
  }

  const pid_t process_ = getpid();
  std::mutex lock_;
  std::condition_variable wake_, done_;
  std::vector<Job*> jobs_; // with parts that nobody has begun
  int64_t count_ = 0;
};

// work(begin, end, part) for `parts` ranges of [0, count), each by one thread.
template <class F>
void in_parts(int64_t count, int64_t parts, const F& work) {
  parts = std::max<int64_t>(1, std::min(parts, count));
  if (parts == 1) return work(0, count, 0);
  Workers::run(parts, parts, [&](int64_t i) { work(count * i / parts, count * (i + 1) / parts, i); });
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
  if (threads == 1 || count < 2) return work(0, count);
  const int64_t parts = std::min(count, threads * 8);
  Workers::run(parts, threads, [&](int64_t i) { work(count * i / parts, count * (i + 1) / parts); });
}

} // namespace

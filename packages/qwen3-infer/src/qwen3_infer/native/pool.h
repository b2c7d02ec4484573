// Threads that help with a loop when they have time. The caller never waits for a thread that has not started, so a
// busy machine slows a loop down by what its own threads lack and no more.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace qwen3 {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  static Pool& shared() {
    // Never destroyed: its threads may outlive main.
    static Pool* const pool = new Pool(num_threads() - 1);
    return *pool;
  }

  // How many threads a loop has, its caller's included; counts when set before the first loop.
  static int& num_threads() {
    static int number = 1;
    return number;
  }

  // Calls work(i) once for every i below count, on this and the helping threads, and returns when all are done.
  template <typename Work>
  void run(int64_t count, const Work& work) {
    // Another operation has the helpers: this thread does its own alone.
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || num_helpers_ == 0 || count < 2) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    work_ = &work;
    call_ = [](const void* of, int64_t i) { (*static_cast<const Work*>(of))(i); };
    num_done_.store(0, std::memory_order_relaxed);
    epoch_ = (epoch_ + 1) & 0x7fffffffu;
    open_.store(epoch_ << 32 | static_cast<uint64_t>(count), std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> hold(sleep_); }
      wake_.notify_all();
    }
    while (take()) {
    }
    // On a busy machine the helper that is not done may wait for this very core.
    for (int look = 1; num_done_.load(std::memory_order_acquire) < count; ++look) {
      if (look % 64 == 0) std::this_thread::yield();
      pause();
    }
  }

  // The same, but each thread takes neighbours one after the other, so that it can fetch the next meanwhile; who is done
  // with its own takes others'.
  template <typename Work>
  void run_in_order(int64_t count, const Work& work) {
    struct alignas(64) Part {
      std::atomic<int64_t> next{0};
      int64_t end = 0;
    };
    const int64_t num_parts = std::min<int64_t>({num_helpers_ + 1, count, kMostParts});
    Part parts[kMostParts];
    for (int64_t i = 0; i < num_parts; ++i) {
      parts[i].next.store(count * i / num_parts, std::memory_order_relaxed);
      parts[i].end = count * (i + 1) / num_parts;
    }
    run(num_parts, [&](int64_t own) {
      for (int64_t turn = 0; turn < num_parts; ++turn) {
        Part& part = parts[(own + turn) % num_parts];
        for (int64_t i; (i = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) work(i);
      }
    });
  }

 private:
  static constexpr int64_t kMostParts = 64;
  // How long a helper looks for the next loop before it sleeps; the operations of a layer follow within this.
  static constexpr int kLooks = 4000;

  explicit Pool(int num_helpers) : num_helpers_(num_helpers) {
    for (int i = 0; i < num_helpers; ++i) std::thread([this] { help(); }).detach();
  }

  // Does one piece of the open loop, if there is one. A piece is claimed together with its loop's number, and the
  // caller opens no other before it is done, so what the claimer then reads belongs to that loop.
  bool take() {
    uint64_t open = open_.load(std::memory_order_acquire);
    do {
      if ((open & 0xffffffffu) == 0) return false;
    } while (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel));
    call_(work_, static_cast<int64_t>(open & 0xffffffffu) - 1);
    num_done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  void help() {
    for (;;) {
      for (int look = 0; look < kLooks; ++look) {
        if (take()) look = 0;
        pause();
      }
      std::unique_lock<std::mutex> hold(sleep_);
      num_asleep_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(hold, [this] { return (open_.load(std::memory_order_seq_cst) & 0xffffffffu) != 0; });
      num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  const int num_helpers_;
  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  const void* work_ = nullptr;
  void (*call_)(const void*, int64_t) = nullptr;
  uint64_t epoch_ = 0;
  std::atomic<uint64_t> open_{0};  // number of the loop in the upper half, pieces not yet claimed in the lower
  std::atomic<int64_t> num_done_{0};
  std::atomic<int> num_asleep_{0};
};

}  // namespace qwen3

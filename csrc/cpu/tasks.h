// Independent tasks on torch's threads, and memory for them.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastdense::cpu {

constexpr double kOperationsPerThread = 4e6;  // less work than this is not worth waking another thread

// Calls body(next) on each of torch's threads, where next() gives the tasks 0 .. count - 1, each to one caller, then
// -1. Threads take tasks as they come free, so one that another program slows does not hold up the rest; results must
// not depend on who runs what.
template <typename Body>
void on_threads(int64_t count, double operations, const Body& body) {
  std::atomic<int64_t> taken{0};
  const auto next = [&]() -> int64_t {
    const int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
    return task < count ? task : -1;
  };
  const int64_t useful = static_cast<int64_t>(operations / kOperationsPerThread) + 1;
  const int64_t threads = std::min<int64_t>({int64_t{torch::stable::get_num_threads()}, count, useful});
  if (threads <= 1) return body(next);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { body(next); });
}

// Uninitialized memory at the border of a cache line, or of a huge page (which saves page faults) where it fills some.
template <typename Value>
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(static_cast<Value*>(allocate(std::max<int64_t>(1, size) * sizeof(Value)))) {}

  Value* data() { return data_.get(); }
  const Value* data() const { return data_.get(); }
  Value& operator[](int64_t i) { return data_.get()[i]; }
  const Value& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  static void* allocate(size_t bytes) {
    const bool huge = bytes >= 2 * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (huge) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return data;
  }

  struct Free {
    void operator()(Value* data) const { std::free(data); }
  };
  std::unique_ptr<Value, Free> data_;
};

}  // namespace fastdense::cpu

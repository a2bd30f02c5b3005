// Independent tasks on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastdense::cpu {

constexpr double kOperationsPerThread = 1e6;  // less work than this is not worth waking another thread

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

}  // namespace fastdense::cpu

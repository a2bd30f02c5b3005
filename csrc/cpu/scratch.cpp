#include "cpu/scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

namespace fastdense::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{64} << 10;
constexpr size_t kMostKept = size_t{16} << 20;  // enough for calls so short that clearing pages shows

void* allocate(size_t bytes) {
  const bool huge = bytes >= 2 * kHugePage;
  void* data = nullptr;
  if (posix_memalign(&data, huge ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

// Blocks of calls that are over, the last one first: the next training step asks for the same sizes.
class KeptBlocks {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->bytes != bytes) continue;
      void* data = block->data;
      total_ -= bytes;
      blocks_.erase(block);
      return data;
    }
    return nullptr;
  }

  // A block too large to keep is that of a call so long that clearing pages does not show: then none is kept.
  void put(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_front({data, bytes});
    total_ += bytes;
    for (const size_t most = bytes > kMostKept ? 0 : kMostKept; total_ > most; blocks_.pop_back()) {
      total_ -= blocks_.back().bytes;
      std::free(blocks_.back().data);
    }
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  std::mutex mutex_;
  std::list<Block> blocks_;
  size_t total_ = 0;
};

// Never destroyed: threads may outlive static objects.
KeptBlocks& kept_blocks() {
  static KeptBlocks* blocks = new KeptBlocks;
  return *blocks;
}

}  // namespace

void* take_memory(size_t bytes) {
  void* kept = bytes >= kLarge ? kept_blocks().take(bytes) : nullptr;
  return kept != nullptr ? kept : allocate(bytes);
}

void return_memory(void* data, size_t bytes) {
  if (bytes < kLarge) return std::free(data);
  kept_blocks().put(data, bytes);
}

}  // namespace fastdense::cpu

#include "cpu/scratch.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace fastdense::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{64} << 10;
constexpr size_t kMostKept = size_t{16} << 20;  // enough for calls so short that clearing pages shows
constexpr ptrdiff_t kMostBlocks = 256;
constexpr size_t kMostSmall = size_t{256} << 10;  // of a thread
constexpr ptrdiff_t kMostSmallBlocks = 32;

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
  KeptBlocks(size_t most_bytes, ptrdiff_t most_blocks) : most_bytes_(most_bytes), most_blocks_(most_blocks) {
    blocks_.reserve(most_blocks + 1);  // putting a block back must not fail
  }
  ~KeptBlocks() { keep(0); }

  void* take(size_t bytes) {
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if (block->bytes != bytes) continue;
      void* data = block->data;
      total_ -= bytes;
      blocks_.erase(std::next(block).base());
      return data;
    }
    return nullptr;
  }

  // A block too large to keep is that of a call so long that clearing pages does not show: then none is kept.
  void put(void* data, size_t bytes) {
    blocks_.push_back({data, bytes});
    total_ += bytes;
    keep(bytes > most_bytes_ ? 0 : most_bytes_);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  void keep(size_t most_bytes) {
    auto first = blocks_.begin();
    for (; total_ > most_bytes || blocks_.end() - first > most_blocks_; ++first) {
      total_ -= first->bytes;
      std::free(first->data);
    }
    blocks_.erase(blocks_.begin(), first);
  }

  const size_t most_bytes_;
  const ptrdiff_t most_blocks_;
  std::vector<Block> blocks_;
  size_t total_ = 0;
};

// Small blocks stay with their thread: no lock.
KeptBlocks& small_blocks() {
  thread_local KeptBlocks blocks(kMostSmall, kMostSmallBlocks);
  return blocks;
}

struct LargeBlocks {
  std::mutex mutex;
  KeptBlocks blocks{kMostKept, kMostBlocks};
};

// Never destroyed: threads may outlive static objects.
LargeBlocks& large_blocks() {
  static LargeBlocks* blocks = new LargeBlocks;
  return *blocks;
}

void* take_kept(size_t bytes) {
  if (bytes < kLarge) return small_blocks().take(bytes);
  const std::lock_guard<std::mutex> lock(large_blocks().mutex);
  return large_blocks().blocks.take(bytes);
}

}  // namespace

void* take_memory(size_t bytes) {
  void* kept = take_kept(bytes);
  return kept != nullptr ? kept : allocate(bytes);
}

void return_memory(void* data, size_t bytes) {
  if (bytes < kLarge) return small_blocks().put(data, bytes);
  const std::lock_guard<std::mutex> lock(large_blocks().mutex);
  large_blocks().blocks.put(data, bytes);
}

}  // namespace fastdense::cpu

// fastdense._memory: torch's CPU tensors in memory that glibc can use again.
//
// torch asks posix_memalign for tensors. glibc cuts the aligned block out of a larger one and keeps the slivers before
// and behind it for small requests; once one of them is taken, the freed block between is some bytes too small for
// another tensor of the same size. A training step frees hundreds of equal tensors between others that live on, and
// its heap grows by as many holes. malloc has no slivers: here the alignment is part of the block.
//
// c10::Allocator is not part of the stable ABI, so this is a library of its own, for the torch that it was built with
// and no other (fastdense/training/freed_memory.py).

#include <c10/core/CPUAllocator.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>

namespace {

constexpr size_t kAlignment = 64;  // as torch's own: a cache line, a vector register of AVX-512

// Before the tensor: malloc aligns to 16 bytes, so there is room for it.
struct Header {
  uintptr_t tag;
  void* block;  // what malloc has returned
};
static_assert(sizeof(Header) == 16);

Header& header_of(void* data) { return static_cast<Header*>(data)[-1]; }

// Differs for every block. Before memory of torch's own stand the two words of glibc's, sizes and flags.
uintptr_t tag_of(const void* block) { return reinterpret_cast<uintptr_t>(block) ^ 0x66617374'64656e73; }

// oneDNN's buffers are freed by the allocator of the day, not by the one that they came from.
bool is_ours(void* data) { return header_of(data).tag == tag_of(header_of(data).block); }

void free_tensor(void* data) {
  if (data == nullptr) return;
  if (!is_ours(data)) return c10::GetDefaultCPUAllocator()->raw_deallocate(data);
  c10::profiledCPUMemoryReporter().Delete(data);
  std::free(header_of(data).block);
}

void* aligned(size_t bytes) {
  void* block = bytes <= SIZE_MAX - kAlignment ? std::malloc(bytes + kAlignment) : nullptr;
  if (block == nullptr) {
    c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
    TORCH_CHECK(false, "can't allocate memory: a tensor of ", bytes, " bytes was asked for");
  }
  void* data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block) / kAlignment + 1) * kAlignment);
  header_of(data) = {tag_of(block), block};
  return data;
}

class TensorMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes > 0 ? aligned(bytes) : nullptr;
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &free_tensor, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_tensor; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

void take_over() {
  static auto* memory = new TensorMemory;  // never destroyed: tensors outlive static objects
  constexpr uint8_t above_torch = 1;
  c10::SetCPUAllocator(memory, above_torch);
}

}  // namespace

PYBIND11_MODULE(_memory, m) {
  m.doc() = "Where torch's CPU tensors lie.";
  m.def("take_over", &take_over, "Have all further CPU tensors of this process lie in blocks that can be used again.");
}

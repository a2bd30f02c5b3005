// Memory for what an operator computes on the way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace fastdense::cpu {

// At the border of a cache line, or of a huge page (which saves page faults) where it fills some. Large blocks come
// from the calls before, which have had the kernel clear their pages; throws std::bad_alloc.
void* take_memory(size_t bytes);
void return_memory(void* data, size_t bytes);

// Uninitialized.
template <typename Value>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : bytes_(std::max<int64_t>(1, size) * sizeof(Value)), data_(static_cast<Value*>(take_memory(bytes_)), {bytes_}) {}

  Value* data() { return data_.get(); }
  const Value* data() const { return data_.get(); }
  Value& operator[](int64_t i) { return data_.get()[i]; }
  const Value& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Return {
    size_t bytes;
    void operator()(Value* data) const { return_memory(data, bytes); }
  };

  size_t bytes_;
  std::unique_ptr<Value, Return> data_;
};

}  // namespace fastdense::cpu

#include "cuda/score_exponentials.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <limits>

#include "cuda/exponentials.h"
#include "cuda/product_choice.h"
#include "cuda/stream.h"
#include "cuda/wgmma_exponentials.h"

namespace fastdense::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kAlignment = 8;  // elements

// Whether copies of 16 bytes can read or write its rows.
bool is_aligned(const Tensor& tensor) {
  return tensor.stride(1) == 1 && tensor.stride(0) % kAlignment == 0 &&
         reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (kAlignment * 2) == 0;
}

int counted(int64_t count) {
  STD_TORCH_CHECK(count <= std::numeric_limits<int>::max() - kTileRows, "too many rows or columns: ", count);
  return static_cast<int>(count);
}

void set_others(Chunk& chunk, const Tensor& target, const std::optional<Tensor>& label) {
  STD_TORCH_CHECK(target.is_contiguous() && (!label || label->is_contiguous()), "target and label must be contiguous");
  chunk.target = target.const_data_ptr<int32_t>();
  chunk.label = label ? label->const_data_ptr<int32_t>() : nullptr;
}

Chunk make_chunk(const Tensor& query, const Tensor& passage, const Tensor& target, const std::optional<Tensor>& label,
                 const Tensor& scale) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(query.scalar_type() == ScalarType::BFloat16 && passage.scalar_type() == ScalarType::BFloat16,
                  "query and passage must be bfloat16");
  STD_TORCH_CHECK(is_aligned(query) && is_aligned(passage) && query.size(1) % kAlignment == 0,
                  "rows of query and passage must be aligned to 16 bytes");
  Chunk chunk{};
  chunk.query = static_cast<const uint16_t*>(query.const_data_ptr());
  chunk.passage = static_cast<const uint16_t*>(passage.const_data_ptr());
  chunk.query_stride = query.stride(0);
  chunk.passage_stride = passage.stride(0);
  chunk.rows = counted(query.size(0));
  chunk.columns = counted(passage.size(0));
  chunk.width = counted(query.size(1));
  chunk.scale = scale.const_data_ptr<float>();
  set_others(chunk, target, label);
  return chunk;
}

void check(cudaError_t status) { STD_TORCH_CHECK(status == cudaSuccess, "fastdense: ", cudaGetErrorString(status)); }

bool uses_wgmma(int device) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  const auto choice = choose_product(std::getenv("FASTDENSE_CUDA_PRODUCT"), major, minor, FASTDENSE_WITH_WGMMA);
  STD_TORCH_CHECK(choice.refusal.empty(), choice.refusal);
  return choice.wgmma;
}

}  // namespace

void score_exponentials(const Tensor& query, const Tensor& passage, const Tensor& target,
                        const std::optional<Tensor>& label, const Tensor& scale, const Tensor& offset,
                        const Tensor& reference, Tensor stored, Tensor target_score, Tensor partials) {
  const DeviceGuard guard(query.get_device_index());
  const Chunk chunk = make_chunk(query, passage, target, label, scale);
  STD_TORCH_CHECK(is_aligned(stored) && stored.stride(0) >= (stored.size(1) + kAlignment - 1) / kAlignment * kAlignment,
                  "rows of stored must be aligned to 16 bytes, padding included");
  STD_TORCH_CHECK(partials.is_contiguous(), "partials must be contiguous");
  ExponentialResults results{};
  results.offset = offset.const_data_ptr<float>();
  results.reference = reference.const_data_ptr<float>();
  results.stored = static_cast<uint16_t*>(stored.mutable_data_ptr());
  results.stride = stored.stride(0);
  results.target_score = target_score.mutable_data_ptr<float>();
  results.partials = partials.mutable_data_ptr<float>();
  const int device = query.get_device_index();
  const auto launch = uses_wgmma(device) ? exponentials_by_wgmma : exponentials;
  check(launch(chunk, results, current_stream(device)));
}

void score_maxima(const Tensor& query, const Tensor& passage, const Tensor& target, const std::optional<Tensor>& label,
                  const Tensor& scale, const Tensor& wanted, Tensor partials) {
  const DeviceGuard guard(query.get_device_index());
  const Chunk chunk = make_chunk(query, passage, target, label, scale);
  STD_TORCH_CHECK(partials.is_contiguous(), "partials must be contiguous");
  RowMaxima results{};
  results.wanted = wanted.const_data_ptr<int8_t>();
  results.maxima = partials.mutable_data_ptr<float>();
  results.sums = results.maxima + partials.stride(0);
  const int device = query.get_device_index();
  const auto launch = uses_wgmma(device) ? row_maxima_and_sums_by_wgmma : row_maxima_and_sums;
  check(launch(chunk, results, current_stream(device)));
}

void smooth_exponentials(Tensor stored, const Tensor& target, const std::optional<Tensor>& label, const Tensor& gain,
                         const Tensor& share) {
  const DeviceGuard guard(stored.get_device_index());
  Chunk chunk{};
  chunk.rows = counted(stored.size(0));
  chunk.columns = counted(stored.size(1));
  set_others(chunk, target, label);
  Smoothing smoothing{};
  smoothing.stored = static_cast<uint16_t*>(stored.mutable_data_ptr());
  smoothing.stride = stored.stride(0);
  smoothing.gain = gain.const_data_ptr<float>();
  smoothing.share = share.const_data_ptr<float>();
  check(subtract_smoothing(chunk, smoothing, current_stream(stored.get_device_index())));
}

}  // namespace fastdense::cuda

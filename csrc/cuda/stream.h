#pragma once

#include <cuda_runtime_api.h>

namespace fastdense::cuda {

// torch's own current stream on a device.
cudaStream_t current_stream(int device);

}  // namespace fastdense::cuda

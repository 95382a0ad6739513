// Builds a DCLS kernel, convolves an image with it, and compares with what the positions mean.
//
// In version v0 an element between the points of the grid is interpolated linearly. Convolving with
// the kernel is then the same as reading the image, linearly interpolated, at each element's
// position. On a linear image that reading is exact, so we know every output pixel beforehand:
//
//   out(y, x) = sum_k weight_k * image(y + position_0k, x + position_1k)

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <dcls/construct.hpp>
#include <dcls/runtime.hpp>
#include <dcls/version.hpp>
#include <exception>
#include <stdexcept>
#include <vector>

#ifdef EXAMPLE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

constexpr int kSize = 7;      // the kernel is kSize x kSize
constexpr int kElements = 3;  // of which it has this many weights
constexpr int kImage = 12;    // the image is kImage x kImage
constexpr int kOut = kImage - kSize + 1;

// One kernel, so one row. Positions count from the kernel's centre: first all of axis 0 (down),
// then all of axis 1 (right).
const std::vector<float> weight = {0.5F, -1.25F, 2.0F};
const std::vector<float> position = {-2.25F, 0.5F, 1.75F, /* axis 1: */ 1.5F, -0.75F, 2.0F};

float image(float y, float x) { return 0.25F * y - 0.5F * x + 1.0F; }

dcls::ConstructArgs problem() {
  dcls::ConstructArgs args;
  args.version = dcls::Version::kV0;
  args.dtype = dcls::DType::kFloat32;
  args.ndim = 2;
  args.size[0] = args.size[1] = kSize;
  args.rows = 1;
  args.elements = kElements;
  args.weight = weight.data();
  args.position = position.data();
  return args;
}

/// Largest difference between the convolution with `kernel` and the formula above.
float convolution_error(const std::vector<float>& kernel) {
  float worst = 0;
  for (int y = 0; y < kOut; ++y) {
    for (int x = 0; x < kOut; ++x) {
      float out = 0;
      for (int i = 0; i < kSize; ++i) {
        for (int j = 0; j < kSize; ++j) {
          out +=
              kernel[i * kSize + j] * image(static_cast<float>(y + i), static_cast<float>(x + j));
        }
      }
      float expected = 0;
      for (int k = 0; k < kElements; ++k) {
        const float centre = kSize / 2;
        expected += weight[k] * image(static_cast<float>(y) + centre + position[k],
                                      static_cast<float>(x) + centre + position[kElements + k]);
      }
      // Not std::max: it would let a NaN pass.
      const float error = std::abs(out - expected);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

bool report(const char* device, const std::vector<float>& kernel) {
  const float error = convolution_error(kernel);
  const bool ok = error < 1e-4F;
  std::printf("%s: largest error %.1e, %s\n", device, error, ok ? "ok" : "WRONG");
  return ok;
}

bool run_on_cpu() {
  std::vector<float> kernel(kSize * kSize);
  dcls::Execution where;
  where.num_threads = 2;
  dcls::construct(problem(), kernel.data(), where);
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) std::printf("%8.4f", kernel[i * kSize + j]);
    std::printf("\n");
  }
  return report("CPU", kernel);
}

#ifdef EXAMPLE_CUDA
void check(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

/// Memory on the GPU.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes)); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

bool run_on_gpu() {
  const std::size_t weight_bytes = weight.size() * sizeof(float);
  const std::size_t position_bytes = position.size() * sizeof(float);
  std::vector<float> kernel(kSize * kSize);
  const std::size_t kernel_bytes = kernel.size() * sizeof(float);
  const Buffer weight_gpu(weight_bytes), position_gpu(position_bytes), kernel_gpu(kernel_bytes);
  check(cudaMemcpy(weight_gpu.data(), weight.data(), weight_bytes, cudaMemcpyHostToDevice));
  check(cudaMemcpy(position_gpu.data(), position.data(), position_bytes, cudaMemcpyHostToDevice));

  dcls::ConstructArgs args = problem();
  args.weight = weight_gpu.data();
  args.position = position_gpu.data();
  dcls::Execution where;
  where.device = dcls::DeviceType::kCuda;
  where.stream = nullptr;                           // the default stream; any cudaStream_t will do
  dcls::construct(args, kernel_gpu.data(), where);  // only queued: the copy below waits for it
  check(cudaMemcpy(kernel.data(), kernel_gpu.data(), kernel_bytes, cudaMemcpyDeviceToHost));
  return report("GPU", kernel);
}
#endif

}  // namespace

int main() {
  try {
    const dcls::BuildInfo info = dcls::build_info();
    std::printf("DCLS %s, headers of %s\n", info.version.c_str(), DCLS_VERSION);
    bool ok = run_on_cpu();

    const dcls::CudaStatus cuda = dcls::cuda_status();
    if (!cuda.available) {
      std::printf("no GPU: %s\n", cuda.reason.c_str());
    } else {
#ifdef EXAMPLE_CUDA
      ok = run_on_gpu() && ok;
#else
      std::printf("GPU not used: this program was built without the CUDA toolkit\n");
#endif
    }
    return ok ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

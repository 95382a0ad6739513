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
#include <dcls/conv.hpp>
#include <dcls/runtime.hpp>
#include <dcls/version.hpp>
#include <exception>
#include <stdexcept>
#include <utility>
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

/// One image of one channel, convolved with one kernel, without padding.
dcls::ConvArgs convolution() {
  dcls::ConvArgs args;
  args.dtype = dcls::DType::kFloat32;
  args.ndim = 2;
  args.batch = args.in_channels = args.out_channels = 1;
  args.input_size[0] = args.input_size[1] = kImage;
  args.output_size[0] = args.output_size[1] = kOut;
  args.kernel_size[0] = args.kernel_size[1] = kSize;
  return args;
}

std::vector<float> make_image() {
  std::vector<float> pixels;
  for (int y = 0; y < kImage; ++y) {
    for (int x = 0; x < kImage; ++x) {
      pixels.push_back(image(static_cast<float>(y), static_cast<float>(x)));
    }
  }
  return pixels;
}

/// Compares a convolved image with the formula above.
bool report(const char* device, const std::vector<float>& out) {
  float worst = 0;
  for (int y = 0; y < kOut; ++y) {
    for (int x = 0; x < kOut; ++x) {
      float expected = 0;
      for (int k = 0; k < kElements; ++k) {
        const float centre = kSize / 2;
        expected += weight[k] * image(static_cast<float>(y) + centre + position[k],
                                      static_cast<float>(x) + centre + position[kElements + k]);
      }
      // Not std::max: it would let a NaN pass.
      const float error = std::abs(out[y * kOut + x] - expected);
      if (!(error <= worst)) worst = error;
    }
  }
  const bool ok = worst < 1e-4F;
  std::printf("%s: largest error %.1e, %s\n", device, worst, ok ? "ok" : "WRONG");
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
  const std::vector<float> pixels = make_image();
  std::vector<float> out(kOut * kOut);
  dcls::direct_conv(convolution(), pixels.data(), kernel.data(), nullptr, out.data(), nullptr,
                    where);
  return report("CPU", out);
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
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

/// A copy of a vector on the GPU.
Buffer upload(const std::vector<float>& values) {
  Buffer buffer(values.size() * sizeof(float));
  check(cudaMemcpy(buffer.data(), values.data(), values.size() * sizeof(float),
                   cudaMemcpyHostToDevice));
  return buffer;
}

bool run_on_gpu() {
  const Buffer weight_gpu = upload(weight), position_gpu = upload(position);
  const Buffer pixels = upload(make_image());
  const Buffer kernel(kSize * kSize * sizeof(float)), out_gpu(kOut * kOut * sizeof(float));

  dcls::ConstructArgs args = problem();
  args.weight = weight_gpu.data();
  args.position = position_gpu.data();
  dcls::Execution where;
  where.device = dcls::DeviceType::kCuda;
  where.stream = nullptr;  // the default stream; any cudaStream_t will do
  // These calls are only queued: the copy below waits for them. Memory comes from the caller.
  dcls::construct(args, kernel.data(), where);
  const Buffer workspace(
      dcls::direct_conv_workspace(convolution(), dcls::ConvPass::kForward, where));
  dcls::direct_conv(convolution(), pixels.data(), kernel.data(), nullptr, out_gpu.data(),
                    workspace.data(), where);
  std::vector<float> out(kOut * kOut);
  check(cudaMemcpy(out.data(), out_gpu.data(), out.size() * sizeof(float), cudaMemcpyDeviceToHost));
  return report("GPU", out);
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

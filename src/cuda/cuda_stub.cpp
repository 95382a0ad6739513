// The CUDA back end of a library that was built without CUDA.

#include "cuda/cuda_backend.hpp"

namespace dcls::cuda {
namespace {

constexpr const char* kReason =
    "this copy of DCLS was built without CUDA. In a clone, DCLS_NVCC=pypi pip install . builds the "
    "CUDA kernels and needs no CUDA toolkit. With DCLS_BACKEND=torch, torch computes, slower";

[[noreturn]] void fail() { throw std::runtime_error(std::string("dcls: ") + kReason); }

}  // namespace

bool compiled() { return false; }
std::string toolkit_version() { return {}; }
std::vector<std::string> architectures() { return {}; }
CudaStatus status() { return {false, {}, kReason, {}}; }

void construct(const ConstructArgs&, void*, const Execution&) { fail(); }
void construct_backward(const ConstructArgs&, const void*, const ConstructGrads&,
                        const Execution&) {
  fail();
}
void construct_support(const ConstructArgs&, std::uint8_t*, const Execution&) { fail(); }
std::size_t direct_conv_workspace(const ConvArgs&, ConvPass, const Execution&) { fail(); }
void direct_conv(const ConvArgs&, const void*, const void*, const void*, void*, void*,
                 const Execution&) {
  fail();
}
void direct_conv_backward_input(const ConvArgs&, const void*, const void*, void*, void*,
                                const Execution&) {
  fail();
}
void direct_conv_backward_kernel(const ConvArgs&, const void*, const void*, const std::uint8_t*,
                                 void*, void*, const Execution&) {
  fail();
}

std::size_t layer_saved(const LayerArgs&, const Execution&) { fail(); }
std::size_t layer_workspace(const LayerArgs&, LayerPass, const Execution&) { fail(); }
void layer_forward(const LayerArgs&, const void*, const void*, void*, void*, void*,
                   const Execution&) {
  fail();
}
void layer_backward(const LayerArgs&, const void*, const void*, const LayerGrads&, const void*,
                    void*, const Execution&) {
  fail();
}

std::int64_t im2col_workspace(const Im2colArgs&) { fail(); }
void im2col(const Im2colArgs&, void*, void*, const Execution&) { fail(); }
void im2col_backward(const Im2colArgs&, const void*, const Im2colGrads&, void*, const Execution&) {
  fail();
}
void im2col_finish(const Im2colArgs&, const void*, std::int64_t, void*, void*, void*,
                   const Execution&) {
  fail();
}

}  // namespace dcls::cuda

// The CUDA back end's operators: which launcher does what. Compiled by the C++ compiler, and
// without a header of CUDA.

#include "cuda/cuda_backend.hpp"

#include "core/dispatch.hpp"
#include "cuda/construct/construct_launch.hpp"
#include "cuda/conv/conv_launch.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/im2col/im2col_launch.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cuda {

void construct(const ConstructArgs& args, void* kernel, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) { launch_construct<ndim()>(args, kernel, where); });
}

void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_construct_backward<ndim()>(args, grad_kernel, grads, where);
  });
}

void construct_support(const ConstructArgs& args, std::uint8_t* support, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_construct_support<ndim()>(args, support, where); });
}

std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass, const Execution&) {
  return conv_workspace(make_conv_plan(args, pass), pass, args.dtype).total();
}

void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, void* workspace, const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_correlate<true> : launch_conv_correlate<false>;
  launch(args, ConvPass::kForward, input, kernel, bias, output, workspace, where);
}

void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, void* workspace, const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_correlate<true> : launch_conv_correlate<false>;
  launch(args, ConvPass::kBackwardInput, grad_output, kernel, nullptr, grad_input, workspace,
         where);
}

void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, void* workspace,
                                 const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_kernel<true> : launch_conv_kernel<false>;
  launch(args, grad_output, input, support, grad_kernel, workspace, where);
}

std::int64_t im2col_workspace(const Im2colArgs& args) {
  const TapLayout layout = tap_table::longest_layout(args);
  std::int64_t bytes = 0;
  dispatch_compute(args.dtype, [&](auto tag) {
    bytes = tap_table::bytes<typename decltype(tag)::type>(layout, args.ndim);
  });
  return bytes;
}

void im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_im2col<ndim()>(args, columns, workspace, where); });
}

void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_backward<ndim()>(args, grad_columns, grads, workspace, where);
  });
}

void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_finish<ndim()>(args, sums, parts, grad_position, grad_sigma, workspace, where);
  });
}

}  // namespace dcls::cuda

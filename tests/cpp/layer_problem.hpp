// A layer in float64, to be given to a back end in any dtype and layout: by the functions of a
// layer, and by those for its parts, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "conv_problem.hpp"
#include "dcls/layer.hpp"

namespace dcls::test {

/// Which gradients to ask for.
struct LayerAsked {
  bool input = true, bias = true, weight = true, position = true, sigma = true;
};

struct LayerResults {
  std::vector<double> output, input, bias, weight, position, sigma;
};

struct LayerProblem {
  ConvProblem conv;
  ConstructProblem construct;

  /// @param axes Learnable axes, the last ones of the kernel; the others are dense.
  LayerProblem(const ConvArgs& args, Version version, std::int64_t elements, int axes,
               unsigned seed = 0)
      : conv(args, seed), construct(make_construct(args, version, elements, axes, seed)) {
    // Sums that are rounded, so that the order of the additions shows.
    for (std::vector<double>* values : {&conv.input, &conv.grad_output}) {
      for (double& v : *values) v /= 3;
    }
  }
  LayerProblem(const ConvArgs& args, Version version, std::int64_t elements = 3)
      : LayerProblem(args, version, elements, args.ndim) {}

  std::string name() const { return conv.name() + ", " + construct.name(); }

  /// The arguments in dtypes of construct and of conv, without pointers.
  template <typename Parameter, typename Storage>
  LayerArgs args() const {
    LayerArgs layer;
    layer.construct = construct.args;
    layer.construct.dtype = DTypeOf<Parameter>::value;
    layer.conv = conv.args;
    layer.conv.dtype = DTypeOf<Storage>::value;
    return layer;
  }

  /// By construct(), direct_conv() and their gradients; the bias's is left out.
  template <typename Parameter, typename Storage, typename Memory = Vectors>
  LayerResults by_parts(const Execution& where) const {
    using Parameters = typename Memory::template Buffer<Parameter>;
    using Tensor = typename Memory::template Buffer<Storage>;
    const Parameters w(to_storage<Parameter>(construct.weight)),
        p(to_storage<Parameter>(construct.position)), s(to_storage<Parameter>(construct.sigma));
    const Tensor x(conv.store<Storage>(conv.input, conv.args.in_channels)),
        g(conv.store<Storage>(conv.grad_output, conv.args.out_channels)),
        b(to_storage<Storage>(conv.bias));
    LayerArgs call = args<Parameter, Storage>();
    call.construct.weight = w.data();
    call.construct.position = p.data();
    call.construct.sigma = s.size() > 0 ? s.data() : nullptr;
    Parameters built(conv.kernel.size());
    dcls::construct(call.construct, built.data(), where);
    typename Memory::template Buffer<std::uint8_t> support(built.size());
    construct_support(call.construct, support.data(), where);
    const Tensor kernel(to_storage<Storage>(to_double(built)));
    Tensor output(g.size()), grad_input(x.size()), grad_kernel(kernel.size());
    const auto bytes = [&](ConvPass pass) { return direct_conv_workspace(call.conv, pass, where); };
    Workspace<Memory> forward(bytes(ConvPass::kForward)),
        backward_input(bytes(ConvPass::kBackwardInput)),
        backward_kernel(bytes(ConvPass::kBackwardKernel));
    direct_conv(call.conv, x.data(), kernel.data(), b.data(), output.data(), forward.data(), where);
    direct_conv_backward_input(call.conv, g.data(), kernel.data(), grad_input.data(),
                               backward_input.data(), where);
    direct_conv_backward_kernel(call.conv, g.data(), x.data(), support.data(), grad_kernel.data(),
                                backward_kernel.data(), where);
    const Parameters grad_built(to_storage<Parameter>(to_double(grad_kernel)));
    Parameters grad_w(w.size()), grad_p(p.size()), grad_s(s.size());
    construct_backward(call.construct, grad_built.data(),
                       {grad_w.data(), grad_p.data(), s.size() > 0 ? grad_s.data() : nullptr},
                       where);
    return {to_double(output), to_double(grad_input), {},
            to_double(grad_w), to_double(grad_p),     to_double(grad_s)};
  }

  /// The gradient of the bias, by the definition.
  std::vector<double> bias_gradient() const {
    std::vector<double> sums(static_cast<std::size_t>(conv.args.out_channels));
    const auto points = static_cast<std::size_t>(conv.output_points());
    for (std::size_t i = 0; i < conv.grad_output.size(); ++i) {
      sums[i / points % sums.size()] += conv.grad_output[i];
    }
    return sums;
  }

 private:
  static ConstructProblem make_construct(const ConvArgs& args, Version version,
                                         std::int64_t elements, int axes, unsigned seed) {
    std::int64_t rows = args.out_channels * (args.in_channels / args.groups);
    for (int d = 0; d < args.ndim - axes; ++d) rows *= args.kernel_size[d];
    const std::vector<std::int64_t> size(args.kernel_size + args.ndim - axes,
                                         args.kernel_size + args.ndim);
    return ConstructProblem(version, size, rows, elements, seed);
  }
};

}  // namespace dcls::test

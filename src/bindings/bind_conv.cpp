#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "address.hpp"
#include "dcls/conv.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {
namespace {

using Sizes = std::vector<std::int64_t>;

ConvArgs make_args(int dtype, int layout, std::int64_t batch, std::int64_t in_channels,
                   std::int64_t out_channels, std::int64_t groups, const Sizes& input_size,
                   const Sizes& output_size, const Sizes& kernel_size, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, bool allow_tf32) {
  ConvArgs args;
  args.dtype = static_cast<DType>(dtype);
  args.layout = static_cast<Layout>(layout);
  args.ndim = static_cast<int>(kernel_size.size());
  args.any_output_size = true;  // asymmetric padding
  args.batch = batch;
  args.in_channels = in_channels;
  args.out_channels = out_channels;
  args.groups = groups;
  const auto fill = [&](const char* name, const Sizes& from, std::int64_t (&to)[kMaxDims]) {
    if (from.empty() || from.size() > kMaxDims || from.size() != kernel_size.size()) {
      throw py::value_error(std::string(name) + " must have 1 to 3 entries, as kernel_size");
    }
    for (std::size_t d = 0; d < from.size(); ++d) to[d] = from[d];
  };
  fill("kernel_size", kernel_size, args.kernel_size);
  fill("input_size", input_size, args.input_size);
  fill("output_size", output_size, args.output_size);
  fill("stride", stride, args.stride);
  fill("padding", padding, args.padding);
  fill("dilation", dilation, args.dilation);
  args.allow_tf32 = allow_tf32;
  return args;
}

}  // namespace

void register_conv(py::module_& m) {
  py::class_<ConvArgs>(m, "ConvProblem")
      .def(py::init(&make_args), "dtype"_a, "layout"_a, "batch"_a, "in_channels"_a,
           "out_channels"_a, "groups"_a, "input_size"_a, "output_size"_a, "kernel_size"_a,
           "stride"_a, "padding"_a, "dilation"_a, "allow_tf32"_a = false);
  m.def(
      "direct_conv_workspace",
      [](const ConvArgs& args, int pass, const Execution& where) {
        return direct_conv_workspace(args, static_cast<ConvPass>(pass), where);
      },
      "problem"_a, "conv_pass"_a, "where"_a);
  m.def(
      "takes_batch_as_lanes",
      [](int dtype, std::int64_t batch, std::int64_t in_channels, std::int64_t out_channels,
         std::int64_t groups, std::int64_t output_size, std::int64_t stride,
         std::int64_t vector_bytes) {
        ConvArgs args;
        args.dtype = static_cast<DType>(dtype);
        args.ndim = 1;
        args.any_output_size = true;  // only output_size and stride are known
        args.batch = batch;
        args.in_channels = in_channels;
        args.out_channels = out_channels;
        args.groups = groups;
        args.output_size[0] = output_size;
        args.stride[0] = stride;
        return direct_conv_takes_batch_as_lanes(args, vector_bytes);
      },
      "dtype"_a, "batch"_a, "in_channels"_a, "out_channels"_a, "groups"_a, "output_size"_a,
      "stride"_a, "vector_bytes"_a = 0);
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "direct_conv",
      [](const ConvArgs& args, Address input, Address kernel, Address bias, Address output,
         Address workspace, const Execution& where) {
        direct_conv(args, pointer(input), pointer(kernel), pointer(bias), pointer(output),
                    pointer(workspace), where);
      },
      "problem"_a, "input"_a, "kernel"_a, "bias"_a, "output"_a, "workspace"_a, "where"_a, release);
  py::class_<PreparedConv>(m, "PreparedConv")
      .def(py::init([](const ConvArgs& args, Address kernel, const Execution& where) {
             return PreparedConv(args, pointer(kernel), where);
           }),
           "problem"_a, "kernel"_a, "where"_a, release)
      .def(
          "forward",
          [](const PreparedConv& self, Address input, Address bias, Address output,
             const Execution& where) {
            self.forward(pointer(input), pointer(bias), pointer(output), where);
          },
          "input"_a, "bias"_a, "output"_a, "where"_a, release);
  m.def(
      "direct_conv_backward_input",
      [](const ConvArgs& args, Address grad_output, Address kernel, Address grad_input,
         Address workspace, const Execution& where) {
        direct_conv_backward_input(args, pointer(grad_output), pointer(kernel), pointer(grad_input),
                                   pointer(workspace), where);
      },
      "problem"_a, "grad_output"_a, "kernel"_a, "grad_input"_a, "workspace"_a, "where"_a, release);
  m.def(
      "direct_conv_backward_kernel",
      [](const ConvArgs& args, Address grad_output, Address input, Address support,
         Address grad_kernel, Address workspace, const Execution& where) {
        direct_conv_backward_kernel(args, pointer(grad_output), pointer(input),
                                    pointer<const std::uint8_t>(support), pointer(grad_kernel),
                                    pointer(workspace), where);
      },
      "problem"_a, "grad_output"_a, "input"_a, "support"_a, "grad_kernel"_a, "workspace"_a,
      "where"_a, release);
}

}  // namespace dcls::bindings

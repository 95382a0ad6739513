#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "address.hpp"
#include "dcls/im2col.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {
namespace {

using Sizes = std::vector<std::int64_t>;

Im2colArgs make_args(int version, int dtype, const Sizes& size, const Sizes& stride,
                     const Sizes& padding, const Sizes& input_size, const Sizes& output_size,
                     std::int64_t batch, std::int64_t channels, std::int64_t elements,
                     std::int64_t batch_stride, std::int64_t channel_stride, double sigma_min,
                     Address input, Address position, Address sigma) {
  Im2colArgs args;
  args.version = static_cast<Version>(version);
  args.dtype = static_cast<DType>(dtype);
  args.ndim = static_cast<int>(size.size());
  args.any_output_size = true;  // parts of the columns
  const auto copy = [&](const Sizes& from, std::int64_t* to) {
    if (from.size() != size.size() || from.empty() || from.size() > kMaxDims) {
      throw py::value_error("all sizes must have as many entries, 1 to 3");
    }
    std::copy(from.begin(), from.end(), to);
  };
  copy(size, args.size);
  copy(stride, args.stride);
  copy(padding, args.padding);
  copy(input_size, args.input_size);
  copy(output_size, args.output_size);
  args.batch = batch;
  args.channels = channels;
  args.elements = elements;
  args.batch_stride = batch_stride;
  args.channel_stride = channel_stride;
  args.sigma_min = sigma_min;
  args.input = pointer<const void>(input);
  args.position = pointer<const void>(position);
  args.sigma = pointer<const void>(sigma);
  return args;
}

}  // namespace

void register_im2col(py::module_& m) {
  py::class_<Im2colArgs>(m, "Im2colProblem")
      .def(py::init(&make_args), py::kw_only(), "version"_a, "dtype"_a, "size"_a, "stride"_a,
           "padding"_a, "input_size"_a, "output_size"_a, "batch"_a, "channels"_a, "elements"_a,
           "batch_stride"_a, "channel_stride"_a, "sigma_min"_a, "input"_a, "position"_a, "sigma"_a);
  m.def("im2col_workspace", &im2col_workspace, "problem"_a, "where"_a);
  m.def(
      "im2col",
      [](const Im2colArgs& args, Address columns, Address workspace, const Execution& where) {
        const py::gil_scoped_release release;
        im2col(args, pointer(columns), pointer(workspace), where);
      },
      "problem"_a, "columns"_a, "workspace"_a, "where"_a);
  m.def(
      "im2col_backward",
      [](const Im2colArgs& args, Address grad_columns, Address grad_input,
         std::int64_t batch_stride, std::int64_t channel_stride, Address sums, std::int64_t parts,
         bool sigma, Address workspace, const Execution& where) {
        const Im2colGrads grads{pointer(grad_input), batch_stride, channel_stride,
                                pointer(sums),       parts,        sigma};
        const py::gil_scoped_release release;
        im2col_backward(args, pointer<const void>(grad_columns), grads, pointer(workspace), where);
      },
      "problem"_a, "grad_columns"_a, "grad_input"_a, "batch_stride"_a, "channel_stride"_a, "sums"_a,
      "parts"_a, "sigma"_a, "workspace"_a, "where"_a);
  m.def(
      "im2col_finish",
      [](const Im2colArgs& args, Address sums, std::int64_t parts, Address grad_position,
         Address grad_sigma, Address workspace, const Execution& where) {
        const py::gil_scoped_release release;
        im2col_finish(args, pointer<const void>(sums), parts, pointer(grad_position),
                      pointer(grad_sigma), pointer(workspace), where);
      },
      "problem"_a, "sums"_a, "parts"_a, "grad_position"_a, "grad_sigma"_a, "workspace"_a,
      "where"_a);
}

}  // namespace dcls::bindings

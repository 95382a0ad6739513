#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "address.hpp"
#include "dcls/construct.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {
namespace {

/// A contiguous problem, in the order of _native/dense.py.
ConstructArgs make_args(int version, int dtype, const std::vector<std::int64_t>& size,
                        const std::vector<int>& position_row, std::int64_t rows,
                        std::int64_t elements, double sigma_min, Address weight, Address position,
                        Address sigma) {
  if (size.empty() || size.size() > kMaxDims || position_row.size() != size.size()) {
    throw py::value_error("size must have 1 to 3 entries, and position_row as many");
  }
  ConstructArgs args;
  args.version = static_cast<Version>(version);
  args.dtype = static_cast<DType>(dtype);
  args.ndim = static_cast<int>(size.size());
  for (std::size_t d = 0; d < size.size(); ++d) {
    args.size[d] = size[d];
    args.position_row[d] = position_row[d];
  }
  args.rows = rows;
  args.elements = elements;
  args.sigma_min = sigma_min;
  args.weight = pointer<const void>(weight);
  args.position = pointer<const void>(position);
  args.sigma = pointer<const void>(sigma);
  return args;
}

Execution make_execution(int device, int device_index, Address stream, int num_threads) {
  return {static_cast<DeviceType>(device), device_index, pointer(stream), num_threads};
}

}  // namespace

void register_construct(py::module_& m) {
  py::class_<ConstructArgs>(m, "ConstructProblem")
      .def(py::init(&make_args), "version"_a, "dtype"_a, "size"_a, "position_row"_a, "rows"_a,
           "elements"_a, "sigma_min"_a, "weight"_a, "position"_a, "sigma"_a);
  py::class_<Execution>(m, "Execution")
      .def(py::init(&make_execution), "device"_a, "device_index"_a, "stream"_a, "num_threads"_a);
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "construct",
      [](const ConstructArgs& args, Address kernel, const Execution& where) {
        construct(args, pointer(kernel), where);
      },
      "problem"_a, "kernel"_a, "where"_a, release);
  m.def(
      "construct_backward",
      [](const ConstructArgs& args, Address grad_kernel, Address grad_weight, Address grad_position,
         Address grad_sigma, const Execution& where) {
        const ConstructGrads grads{pointer(grad_weight), pointer(grad_position),
                                   pointer(grad_sigma)};
        construct_backward(args, pointer(grad_kernel), grads, where);
      },
      "problem"_a, "grad_kernel"_a, "grad_weight"_a, "grad_position"_a, "grad_sigma"_a, "where"_a,
      release);
  m.def(
      "construct_support",
      [](const ConstructArgs& args, Address support, const Execution& where) {
        construct_support(args, pointer<std::uint8_t>(support), where);
      },
      "problem"_a, "support"_a, "where"_a, release);
}

}  // namespace dcls::bindings

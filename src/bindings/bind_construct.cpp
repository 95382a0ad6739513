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

/// A contiguous problem: what both directions share, in the order of _kernels.py.
struct Problem {
  int version;
  int dtype;
  std::vector<std::int64_t> size;
  std::int64_t rows;
  std::int64_t elements;
  double sigma_min;
  Address weight;
  Address position;
  Address sigma;
};

ConstructArgs make_args(const Problem& p) {
  if (p.size.empty() || p.size.size() > kMaxDims) {
    throw py::value_error("size must have 1 to 3 entries");
  }
  ConstructArgs args;
  args.version = static_cast<Version>(p.version);
  args.dtype = static_cast<DType>(p.dtype);
  args.ndim = static_cast<int>(p.size.size());
  for (std::size_t d = 0; d < p.size.size(); ++d) args.size[d] = p.size[d];
  args.rows = p.rows;
  args.elements = p.elements;
  args.sigma_min = p.sigma_min;
  args.weight = pointer<const void>(p.weight);
  args.position = pointer<const void>(p.position);
  args.sigma = pointer<const void>(p.sigma);
  return args;
}

Execution make_execution(int device, int device_index, Address stream, int num_threads) {
  return {static_cast<DeviceType>(device), device_index, pointer(stream), num_threads};
}

}  // namespace

void register_construct(py::module_& m) {
  py::class_<Problem>(m, "ConstructProblem")
      .def(py::init<int, int, std::vector<std::int64_t>, std::int64_t, std::int64_t, double,
                    Address, Address, Address>(),
           "version"_a, "dtype"_a, "size"_a, "rows"_a, "elements"_a, "sigma_min"_a, "weight"_a,
           "position"_a, "sigma"_a);
  py::class_<Execution>(m, "Execution")
      .def(py::init(&make_execution), "device"_a, "device_index"_a, "stream"_a, "num_threads"_a);
  m.def(
      "construct",
      [](const Problem& problem, Address kernel, const Execution& where) {
        const ConstructArgs args = make_args(problem);
        const py::gil_scoped_release release;
        construct(args, pointer(kernel), where);
      },
      "problem"_a, "kernel"_a, "where"_a);
  m.def(
      "construct_backward",
      [](const Problem& problem, Address grad_kernel, Address grad_weight, Address grad_position,
         Address grad_sigma, const Execution& where) {
        const ConstructArgs args = make_args(problem);
        const ConstructGrads grads{pointer(grad_weight), pointer(grad_position),
                                   pointer(grad_sigma)};
        const py::gil_scoped_release release;
        construct_backward(args, pointer<const void>(grad_kernel), grads, where);
      },
      "problem"_a, "grad_kernel"_a, "grad_weight"_a, "grad_position"_a, "grad_sigma"_a, "where"_a);
  m.def(
      "construct_support",
      [](const Problem& problem, Address support, const Execution& where) {
        const ConstructArgs args = make_args(problem);
        const py::gil_scoped_release release;
        construct_support(args, pointer<std::uint8_t>(support), where);
      },
      "problem"_a, "support"_a, "where"_a);
}

}  // namespace dcls::bindings

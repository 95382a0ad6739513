// Where the elements of a 1-D kernel lie: the kernel that they make with all weights 1.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <dcls/construct.hpp>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

std::vector<double> density(const std::vector<double>& position, const std::vector<double>& sigma,
                            std::int64_t size, double sigma_min) {
  if (position.size() != sigma.size()) {
    throw py::value_error("position and sigma must be of one length, got " +
                          std::to_string(position.size()) + " and " + std::to_string(sigma.size()));
  }
  const std::vector<double> ones(position.size(), 1.0);
  dcls::ConstructArgs args;
  args.version = dcls::Version::kGauss;
  args.dtype = dcls::DType::kFloat64;
  args.ndim = 1;
  args.size[0] = size;
  args.rows = 1;
  args.elements = static_cast<std::int64_t>(position.size());
  args.sigma_min = sigma_min;
  args.weight = ones.data();
  args.position = position.data();
  args.sigma = sigma.data();
  if (size < 1) throw py::value_error("size must be at least 1, got " + std::to_string(size));
  std::vector<double> kernel(static_cast<std::size_t>(size));
  const py::gil_scoped_release release;
  dcls::construct(args, kernel.data(), dcls::Execution{});
  return kernel;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.def("density", &density, py::arg("position"), py::arg("sigma"), py::arg("size"),
        py::arg("sigma_min"), "The 1-D Gauss kernel of elements of weight 1, in float64.");
}

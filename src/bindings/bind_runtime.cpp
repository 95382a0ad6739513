#include <pybind11/stl.h>

#include <cstddef>
#include <cstring>

#include "address.hpp"
#include "dcls/runtime.hpp"
#include "dcls/types.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {

void register_runtime(py::module_& m) {
  py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);
  m.def("build_info", [] {
    const BuildInfo info = build_info();
    return py::dict("version"_a = info.version, "compiler"_a = info.compiler, "cuda"_a = info.cuda,
                    "cuda_toolkit"_a = info.cuda_toolkit,
                    "cuda_architectures"_a = info.cuda_architectures, "openmp"_a = info.openmp,
                    "simd"_a = info.simd, "simd_compiled"_a = info.simd_compiled);
  });
  py::class_<VersionInfo>(m, "VersionInfo")
      .def_readonly("name", &VersionInfo::name)
      .def_readonly("normalised", &VersionInfo::normalised)
      .def_readonly("has_width", &VersionInfo::has_width)
      .def_readonly("smallest_width", &VersionInfo::smallest_width)
      .def_readonly("most_taps", &VersionInfo::most_taps);
  m.def("versions", &versions);
  py::class_<DTypeInfo>(m, "DTypeInfo")
      .def_readonly("name", &DTypeInfo::name)
      .def_readonly("bytes", &DTypeInfo::bytes);
  m.def("dtypes", &dtypes);
  m.def(
      "same_bytes",
      [](Address one, Address other, std::size_t count) {
        const py::gil_scoped_release release;
        return count == 0 || std::memcmp(pointer<>(one), pointer<>(other), count) == 0;
      },
      "one"_a, "other"_a, "count"_a);
  m.def("cuda_status", [] {
    const CudaStatus status = cuda_status();
    return py::dict("available"_a = status.available, "driver"_a = status.driver,
                    "reason"_a = status.reason, "devices"_a = status.devices);
  });
}

}  // namespace dcls::bindings

#include "dcls/version.hpp"
#include "register.hpp"

// Addresses, sizes and enumerators come in as integers: the module knows no framework. Its only
// caller is DCLS/_native, which owns the tensors for the time of a call.
PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Bindings of libdcls. Not public: use DCLS.functional.";
  m.attr("__version__") = DCLS_VERSION;
  dcls::bindings::register_runtime(m);
  dcls::bindings::register_construct(m);
  dcls::bindings::register_conv(m);
  dcls::bindings::register_delay(m);
  dcls::bindings::register_im2col(m);
  dcls::bindings::register_layer(m);
}

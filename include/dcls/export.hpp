#pragma once

// Everything else in libdcls is compiled with hidden visibility.
#if defined(DCLS_STATIC_DEFINE)
#define DCLS_API
#else
#define DCLS_API __attribute__((visibility("default")))
#endif

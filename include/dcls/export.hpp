#pragma once

// Everything else in libdcls is compiled with hidden visibility.
#define DCLS_API __attribute__((visibility("default")))

"""Tensors to addresses: where pointers and streams leave torch for the native library."""

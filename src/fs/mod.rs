//! File system semantics, without the kernel's types.

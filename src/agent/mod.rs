//! The daemon: wiring, lifecycle, control API, metrics, shutdown.

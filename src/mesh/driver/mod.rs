//! The driver.
mod content;
mod peers;

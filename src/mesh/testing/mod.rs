//! The mesh over a virtual network in paused time: what is tested here runs the real endpoint, and the same seed gives
//! the same run to the datagram.

mod endpoint_tests;
mod hostile_tests;
mod mesh_tests;
mod net;
mod version_tests;
mod world;

pub(in crate::mesh) use net::Link;
pub(in crate::mesh) use world::{World, run, steady_certificate};

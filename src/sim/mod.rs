//! The fleet simulator: the node's own decisions on a virtual network.

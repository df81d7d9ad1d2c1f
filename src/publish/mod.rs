//! A tree becomes chunks, segments, catalogs and a signed root, in that write order.

//! Every setting, its unit, its default and the reason for the default.

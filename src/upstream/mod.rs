//! Reading strata over HTTP, and serving one.

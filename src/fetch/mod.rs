//! The fetch path: cache, then mesh, then strata; one fetch per chunk however many readers wait.

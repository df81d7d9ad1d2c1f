//! Keys, signed roots, repository cards, roll-back refusal.
//!
//! A repository is known by the [`Fingerprint`] of its root keys. They authorise a publishing key
//! (delegation), which signs the roots. A [`RepositoryCard`] tells a node the fingerprint and the
//! strata; [`Repositories`] remembers, durably, cards and the newest root accepted of each.
//! The byte formats are told in `docs/repository-format.md`.

mod card;
mod durable;
mod keys;
mod registry;
mod root;
mod sections;

pub use card::{CardError, RepositoryCard, STRATA_MAX, SignedCard};
pub use keys::{Fingerprint, KeyError, KeySet, Keys};
pub use registry::{CardVerdict, RegistryError, Repositories, RootVerdict};
pub use root::{Root, SignedRoot, Standing, TrustError, VerifiedRoot};

//! Keys, signed roots, repository cards, roll-back refusal.

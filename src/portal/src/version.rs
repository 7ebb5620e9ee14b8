//! Versions of the portal protocol, each with a name that says what it brought.
//!
//! To add one: add a constant, raise [`CURRENT`], and follow the list at the top of `proto/portal.proto`.

/// The first version: guest, container and execution services.
pub const INITIAL: u16 = 1;

/// What this build speaks.
pub const CURRENT: u16 = INITIAL;

/// The oldest version that this build still understands.
pub const OLDEST: u16 = INITIAL;

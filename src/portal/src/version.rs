//! Versions of the portal protocol, each with a name that says what it brought.
//!
//! To add one: add a constant, raise [`CURRENT`], and follow the list at the top of `proto/portal.proto`.

/// The first version: guest, container and execution services.
pub const INITIAL: u16 = 1;

/// The guest's clock, statistics and events; executions that are quiet; readers that observe.
pub const LIFECYCLE: u16 = 2;

/// Files, bulk transfers, volumes; a command with the head of its output; output from a position on; what becomes of an
/// execution's orphans.
pub const FILES: u16 = 3;

/// The machine's network.
pub const NETWORK: u16 = 4;

/// What this build speaks.
pub const CURRENT: u16 = NETWORK;

/// The oldest version that this build still understands.
pub const OLDEST: u16 = INITIAL;

//! A user-mode network for one box.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod dns;
pub mod policy;
pub mod rules;
pub mod sniff;

//! A user-mode network for one box.
//!
//! The guest's Ethernet ends here: what it sends is taken apart, judged by the box's [policy], and goes on through sockets of
//! the host, if it may. Nothing of it reaches the host's network as a packet. Names are resolved here as well, so that a
//! connection can be judged by the name that led to it.
//!
//! ```text
//!   guest ══ Ethernet over a Unix stream ══ switch ──▶ sockets of the host
//!                                             │ ▲
//!                            policy ◀── rules ┘ └── resolver ──▶ the host's resolvers
//! ```
//!
//! [`serve()`] runs all of it, in a process of its own that holds no secret of the host and that the monitor can start again.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod capture;
mod denials;
pub mod dns;
mod exchange;
mod link;
mod neighbor;
mod orders;
mod packet;
pub mod policy;
mod publish;
mod rate;
mod reply;
mod report;
pub mod rules;
mod serve;
pub mod sniff;
mod switch;
mod table;
mod tcp;

pub use publish::PortError;
pub use serve::{ServeError, serve};

//! What a box may reach.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boxlite_control::{LinkSpec, NetworkPolicy, NetworkProtocol};

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP, UDP or ICMP.
    pub protocol: NetworkProtocol,
    /// Where the guest sends it; port 0 for ICMP.
    pub to: SocketAddr,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It goes on.
    Allow,
    /// It goes on if what it says about its destination is allowed, too: see [`Policy::judge_stated`]. TCP alone.
    Inspect,
    /// It does not go on, and why not, as a phrase.
    Deny(&'static str),
}

/// What the client of a TCP connection says about its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stated {
    /// It speaks TLS.
    Tls {
        /// The server name it asks for: lower case, without a dot at the end.
        name: Option<String>,
        /// It carries an encrypted inner ClientHello, which may be for another server.
        encrypted: bool,
    },
    /// It speaks HTTP, and one of its requests is for this host: lower case, without port and dot at the end.
    Http {
        /// The host of the request.
        name: Option<String>,
    },
    /// It speaks something else.
    Other,
}

/// A policy, made ready to judge.
#[derive(Debug)]
pub struct Policy {}

impl Policy {
    /// Makes the policy ready.
    pub fn new(policy: &NetworkPolicy, link: &LinkSpec) -> Self {
        let _ = (policy, link);
        todo!()
    }

    /// Judges a new flow, by where it goes and by the names that have led there.
    pub fn judge(&self, flow: &Flow, bindings: &Bindings, now: Instant) -> Judgement {
        let _ = (flow, bindings, now);
        todo!()
    }

    /// Judges what a connection says about its destination.
    ///
    /// # Errors
    ///
    /// Why it is refused, as a phrase.
    pub fn judge_stated(
        &self,
        flow: &Flow,
        stated: &Stated,
        bindings: &Bindings,
        now: Instant,
    ) -> Result<(), &'static str> {
        let _ = (flow, stated, bindings, now);
        todo!()
    }

    /// Whether a name may be asked for. `name` is lower case, without a dot at the end.
    ///
    /// # Errors
    ///
    /// Why it is refused, as a phrase.
    pub fn may_resolve(&self, name: &str) -> Result<(), &'static str> {
        let _ = name;
        todo!()
    }

    /// Whether an answer may say that the name has this address: a public name has no private one.
    pub fn may_answer(&self, name: &str, address: IpAddr) -> bool {
        let _ = (name, address);
        todo!()
    }
}

/// Which names have led to which addresses, and until when.
#[derive(Debug, Default)]
pub struct Bindings {}

impl Bindings {
    /// The name has led to the address, for this long.
    pub fn bind(&mut self, name: &str, address: IpAddr, lifetime: Duration, now: Instant) {
        let _ = (name, address, lifetime, now);
        todo!()
    }

    /// The name that has led to the address last, for people to read.
    pub fn name_of(&self, address: IpAddr, now: Instant) -> Option<&str> {
        let _ = (address, now);
        todo!()
    }
}

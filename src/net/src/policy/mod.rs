//! What a box may reach.
//!
//! A policy is a list of rules, of which the first one that fits decides, and a preset for what none fits.
//!
//! * **Addresses.** A rule about a block fits each address in it, in every form that an IPv4 address can be written in. A
//!   rule about everywhere (`*`) allows the public Internet, and denies everything. What is nobody's address, loopback and
//!   multicast are never allowed; nor is any other machine of the link than the host, by its alias.
//! * **Names.** A name leads to an address when the resolver has answered so, for as long as the answer lives. An address is
//!   allowed by a name only if it is a public one: a private address takes a rule about its block.
//! * **TCP** that only a name allows has to say for whom it is, too, where its protocol does (TLS, HTTP): the name has to be
//!   allowed, and it has to have led to this very address. The same holds of connections that are allowed while names
//!   are denied: what they say must not be denied.
//! * **UDP and ICMP** say nothing that could be looked at. A name allows them only in a rule that names the protocol. While
//!   names are denied, UDP needs an allowed name that has led to its address, or a rule about its block.
//! * **DNS** by others than the gateway (ports 53, 853 and 5353) is denied in a policy that has names or that denies what no
//!   rule allows, unless a rule about a block names the very port.
//! * **The host** is allowed by its name, by a block with its alias, or by the preset `all`; its loopback is what is reached.

mod address;
mod bindings;
mod index;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use boxlite_control::{
    LinkSpec, NetworkPolicy, NetworkPreset, NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict,
};

pub(crate) use address::is_public;
pub use bindings::Bindings;
use index::{By, Found, Index, earlier, is_about};

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

/// Ports of DNS: plain, over TLS or QUIC, and multicast.
const DNS_PORTS: [u16; 3] = [53, 853, 5353];

const NO_RULE: &str = "no rule allows it";
const A_RULE: &str = "a rule denies it";
const PRIVATE: &str = "a private address";
const NOWHERE: &str = "an address that no box may reach";
const OTHER_DNS: &str = "DNS by another server than the gateway";
const NO_NAME: &str = "no allowed name has led there, and UDP does not say for whom it is";
const ENCRYPTED: &str = "it hides for which server it is";
const UNSAID: &str = "it does not say for which server it is";
const UNBOUND: &str = "the name that it asks for has not led to this address";
const NAME_DENIED: &str = "a rule denies the name that it asks for";
const NAME_UNKNOWN: &str = "no rule allows the name that it asks for";
const OTHER_ADDRESS: &str = "it asks for another address";

/// A policy, made ready to judge.
#[derive(Debug)]
pub struct Policy {
    link: LinkSpec,
    preset: NetworkPreset,
    index: Index,
    /// The first rule that denies names.
    first_denied_name: Option<usize>,
    /// DNS has to go through the gateway.
    strict_dns: bool,
}

/// What decides, if anything does, and how it does.
#[derive(Clone, Copy, Debug)]
struct Decision {
    allowed: bool,
    by: Option<Found>,
}

impl Policy {
    /// Makes the policy ready.
    pub fn new(policy: &NetworkPolicy, link: &LinkSpec) -> Self {
        let is_name =
            |rule: &NetworkRule| matches!(rule.target, NetworkTarget::Name(_) | NetworkTarget::Below(_));
        let denies = |rule: &NetworkRule| is_name(rule) && rule.verdict == NetworkVerdict::Deny;
        Self {
            link: link.clone(),
            preset: policy.preset,
            index: Index::new(policy),
            first_denied_name: policy.rules.iter().position(denies),
            strict_dns: policy.preset == NetworkPreset::None || policy.rules.iter().any(is_name),
        }
    }

    /// Judges a new flow, by where it goes and by the names that have led there.
    pub fn judge(&self, flow: &Flow, bindings: &Bindings, now: Instant) -> Judgement {
        let address = flow.to.ip();
        if self.link.is_host(address) {
            return self.judge_host(flow);
        }
        if address::is_nowhere(address) || self.is_link(address) {
            return Judgement::Deny(NOWHERE);
        }
        let direct = self.decide(flow, None);
        let is_dns = flow.protocol != NetworkProtocol::Icmp && DNS_PORTS.contains(&flow.to.port());
        if self.strict_dns && is_dns {
            let named = direct.by.is_some_and(|found| found.by == By::Block && found.has_ports);
            return if direct.allowed && named { Judgement::Allow } else { Judgement::Deny(OTHER_DNS) };
        }
        let names = || bindings.names(address, now).map(|name| self.decide(flow, Some(name)));
        match (direct.allowed, flow.protocol) {
            (true, _) if !self.may_be_denied_by_name(&direct) => Judgement::Allow,
            (true, NetworkProtocol::Tcp) => Judgement::Inspect,
            // What a denied name has led to stays out of reach; and QUIC does not say whom it asks.
            (true, protocol) => {
                let (mut any, mut denied) = (false, false);
                for decision in names() {
                    any |= decision.allowed;
                    denied |= decision.is_name_denial();
                }
                match (denied, any || protocol == NetworkProtocol::Icmp) {
                    (true, _) => Judgement::Deny(A_RULE),
                    (false, true) => Judgement::Allow,
                    (false, false) => Judgement::Deny(NO_NAME),
                }
            }
            (false, NetworkProtocol::Tcp) if names().any(|decision| decision.allowed) => Judgement::Inspect,
            (false, protocol) if protocol != NetworkProtocol::Tcp => {
                let allowed = names().any(|decision| decision.allowed);
                let denied = names().any(|decision| decision.is_name_denial());
                if allowed && !denied {
                    Judgement::Allow
                } else {
                    Judgement::Deny(self.why(address, &direct))
                }
            }
            (false, _) => Judgement::Deny(self.why(address, &direct)),
        }
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
        let address = flow.to.ip();
        let direct = self.decide(flow, None);
        let unsaid = || if direct.allowed { Ok(()) } else { Err(UNSAID) };
        match stated {
            Stated::Tls { encrypted: true, .. } => Err(ENCRYPTED),
            Stated::Tls { name: None, .. } | Stated::Http { name: None } => unsaid(),
            Stated::Tls { name: Some(name), .. } | Stated::Http { name: Some(name) } => {
                if let Some(literal) = literal(name) {
                    let same = literal.to_canonical() == address.to_canonical();
                    return if same { unsaid() } else { Err(OTHER_ADDRESS) };
                }
                let decision = self.decide(flow, Some(name));
                if !decision.allowed {
                    return Err(if decision.is_name_denial() { NAME_DENIED } else { NAME_UNKNOWN });
                }
                let by_name = decision.by.is_some_and(|found| found.by == By::Name);
                let bound = || bindings.names(address, now).any(|bound| bound == name);
                if by_name && !direct.allowed && !bound() { Err(UNBOUND) } else { Ok(()) }
            }
            Stated::Other => {
                let names = || bindings.names(address, now).map(|name| self.decide(flow, Some(name)));
                if names().any(|decision| decision.is_name_denial()) {
                    Err(A_RULE)
                } else if direct.allowed || names().any(|decision| decision.allowed) {
                    Ok(())
                } else {
                    Err(UNSAID)
                }
            }
        }
    }

    /// Whether a name may be asked for. `name` is lower case, without a dot at the end.
    ///
    /// # Errors
    ///
    /// Why it is refused, as a phrase.
    pub fn may_resolve(&self, name: &str) -> Result<(), &'static str> {
        if name == LinkSpec::GATEWAY_NAME {
            return Ok(());
        }
        // A rule that denies some ports or one protocol leaves something to reach, for which the name is needed.
        let counts = |rule: &NetworkRule| {
            rule.verdict == NetworkVerdict::Allow || (rule.ports.is_empty() && rule.protocol.is_none())
        };
        let mut found = earlier(self.index.by_name(name, counts), self.index.by_any(counts));
        if name == LinkSpec::HOST_NAME {
            // The host is private: everywhere does not mean it.
            let private = |rule: &NetworkRule| counts(rule) && rule.verdict == NetworkVerdict::Deny;
            let by_block = self.index.by_block(self.link.host4.into(), counts);
            let by_name = earlier(self.index.by_name(name, counts), self.index.by_any(private));
            found = earlier(by_name, by_block);
            return match found {
                Some(Found { verdict: NetworkVerdict::Allow, .. }) => Ok(()),
                Some(_) => Err(A_RULE),
                None if self.preset == NetworkPreset::All => Ok(()),
                None => Err(NO_RULE),
            };
        }
        match found {
            Some(Found { verdict: NetworkVerdict::Allow, .. }) => Ok(()),
            Some(_) => Err(A_RULE),
            None if self.preset != NetworkPreset::None => Ok(()),
            // Its addresses are looked at.
            None if self.allows_blocks() => Ok(()),
            None => Err(NO_RULE),
        }
    }

    /// Whether an answer may say that the name has this address: a public name has no private one.
    pub fn may_answer(&self, name: &str, address: IpAddr) -> bool {
        if address::is_nowhere(address) || self.link.has(address) {
            return false;
        }
        let allows = |rule: &NetworkRule| rule.verdict == NetworkVerdict::Allow;
        if self.preset == NetworkPreset::All || self.index.by_block(address, allows).is_some() {
            return true;
        }
        address::is_public(address, &self.link)
            && (self.preset == NetworkPreset::Public
                || self.index.by_name(name, allows).is_some()
                || self.index.by_any(allows).is_some())
    }

    fn judge_host(&self, flow: &Flow) -> Judgement {
        let is_about = |rule: &NetworkRule| is_about(rule, flow.protocol, flow.to.port());
        let denies = |rule: &NetworkRule| is_about(rule) && rule.verdict == NetworkVerdict::Deny;
        let by_name = self.index.by_name(LinkSpec::HOST_NAME, is_about);
        let by_address = earlier(self.index.by_block(flow.to.ip(), is_about), self.index.by_any(denies));
        // A block with the alias of one family means the host, whichever family is used.
        let other = if flow.to.is_ipv4() { self.link.host6.into() } else { self.link.host4.into() };
        let by_address = earlier(by_address, self.index.by_block(other, is_about));
        match earlier(by_name, by_address) {
            Some(Found { verdict: NetworkVerdict::Allow, .. }) => Judgement::Allow,
            Some(_) => Judgement::Deny(A_RULE),
            None if self.preset == NetworkPreset::All => Judgement::Allow,
            None => Judgement::Deny("the host is not allowed"),
        }
    }

    /// An address of the link, in any form. The host has been looked at before.
    fn is_link(&self, address: IpAddr) -> bool {
        let (first, second) = address::forms(address);
        self.link.has(first) || second.is_some_and(|address| self.link.has(address))
    }

    /// What decides about a flow; with a name, as if that name were its destination.
    fn decide(&self, flow: &Flow, name: Option<&str>) -> Decision {
        let (address, protocol) = (flow.to.ip(), flow.protocol);
        let public = address::is_public(address, &self.link);
        let is_about = |rule: &NetworkRule| is_about(rule, protocol, flow.to.port());
        let denies = |rule: &NetworkRule| rule.verdict == NetworkVerdict::Deny;
        let by_name = name.and_then(|name| {
            self.index.by_name(name, |rule| {
                let said = protocol == NetworkProtocol::Tcp || rule.protocol == Some(protocol);
                is_about(rule) && (denies(rule) || (public && said))
            })
        });
        let by_block = self.index.by_block(address, is_about);
        let by_any = self.index.by_any(|rule| is_about(rule) && (denies(rule) || public));
        let by = earlier(by_name, earlier(by_block, by_any));
        let allowed = match by {
            Some(found) => found.verdict == NetworkVerdict::Allow,
            None => match self.preset {
                NetworkPreset::None => false,
                NetworkPreset::Public => public,
                NetworkPreset::All => true,
            },
        };
        Decision { allowed, by }
    }

    /// Whether a rule that denies names stands before what allows a flow by its address.
    fn may_be_denied_by_name(&self, direct: &Decision) -> bool {
        match (self.first_denied_name, direct.by) {
            (None, _) => false,
            (Some(denied), Some(found)) => denied < found.number,
            (Some(_), None) => true,
        }
    }

    fn allows_blocks(&self) -> bool {
        let allows = |rule: &NetworkRule| {
            matches!(rule.target, NetworkTarget::Block { .. }) && rule.verdict == NetworkVerdict::Allow
        };
        self.index.rules().iter().any(allows)
    }

    fn why(&self, address: IpAddr, direct: &Decision) -> &'static str {
        if direct.by.is_some() {
            A_RULE
        } else if !address::is_public(address, &self.link) {
            PRIVATE
        } else {
            NO_RULE
        }
    }
}

impl Decision {
    /// Whether a rule about names denies it.
    fn is_name_denial(&self) -> bool {
        let denies = |found: &Found| found.by == By::Name && found.verdict == NetworkVerdict::Deny;
        !self.allowed && self.by.as_ref().is_some_and(denies)
    }
}

/// An address in the place of a name.
fn literal(name: &str) -> Option<IpAddr> {
    name.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests;

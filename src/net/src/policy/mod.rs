//! What a box may reach.
//!
//! A policy is a preset and a list of rules. **The first rule that fits a flow decides**, and the preset does when none
//! fits: `none` allows nothing, `public` (the default) the public Internet, `all` all that the host reaches, and the host
//! itself by its alias. What is said below about rules holds for each of the presets.
//!
//! # Addresses
//!
//! * A rule by **block** (`10.0.0.0/8`) fits the addresses in it, in each of their spellings: an IPv4-mapped, IPv4-translated
//!   or NAT64 address is the IPv4 address that it carries. A block that is denied is also denied as a part of a 6to4 or
//!   Teredo address, and none of those is public unless the IPv4 addresses in it are.
//! * A rule that **allows `*`** is about public addresses. Everything that the registries of special-purpose addresses
//!   name, and the metadata servers of the clouds, is **private**: it is allowed by a block, or by the preset `all`. (The block
//!   `0.0.0.0/0` contains private addresses, too.) A rule that **denies `*`** denies everything.
//! * **No rule allows** the unspecified address, loopback, multicast, broadcast, and the addresses of the box's own network.
//!   (The gateway answers DNS and echo requests by itself, and nobody asks a policy about those.)
//! * The **host's alias** is allowed by a rule for its name, `host.boxlite.internal`, by a block that contains its address,
//!   and by the preset `all`; in no other spelling than its own.
//!
//! # Names
//!
//! A rule by name (`example.com`, or `*.example.com` for all names below) is about the addresses that the name has led to:
//! the guest has asked the box's resolver, and the answer has not run out.
//!
//! * An **allowed name** allows its public addresses. For private ones, some block that is allowed for the port or the
//!   preset `all` has to allow that a name leads there: a name of the Internet must not open the host's own network.
//! * Many names share one address. So a TCP connection that is allowed by name goes on only if the server that it **asks
//!   for** is allowed, too, and has led to this very address: the server name of TLS, and the host of HTTP. TLS that does
//!   not say for whom it is, or says so only under encryption (ECH), is refused. A protocol that is neither TLS nor HTTP
//!   says nothing, and is allowed if none of the address's known names is denied by name.
//! * UDP and ICMP say nothing about names. A rule that allows a name fits them **only if it says so**
//!   (`example.com:443/udp`), and then all that is at the address is allowed. QUIC, on UDP port 443, is one of those.
//! * A **denied name** denies its addresses, unless another name that is not denied has led there as well: then, over TCP,
//!   what the connection asks for decides. Since a guest needs no resolver to know an address, a policy that denies any
//!   name looks at what every TCP connection asks for that the preset or `*` allows, and at those that a block allows
//!   whose rule stands behind that denial. There a name does not have to have led to the address, and a connection that
//!   names no server is allowed if no name of its address is denied.
//!
//! # Other resolvers
//!
//! If the policy has a rule by name, or the preset is `none`, DNS goes to the box's resolver alone: TCP and UDP to the ports
//! 53, 853 and 5353 are refused elsewhere, unless a block is allowed by a rule that names that very port.
//!
//! The resolver refuses a name if the first rule by name that fits it denies it altogether, or if `*` was denied altogether
//! before. A name that no rule names resolves unless the preset is `none`; with that one, it does if `*` or any block is
//! allowed. Answers lose the addresses that no flow could be allowed to.

mod address;
mod bindings;
mod blocks;
mod book;
mod names;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use boxlite_control::{
    LinkSpec, NetworkPolicy, NetworkPreset, NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict,
};

use self::address::{Address, Class};
pub use self::bindings::Bindings;
use self::blocks::Blocks;
use self::book::{Book, Kind, Look, NONE};
use self::names::{Names, is_name, plain};

/// The names below it are those of the box's own network.
const OWN_ZONE: &str = "boxlite.internal";

const BY_RULE: &str = "a rule denies it";
const NO_RULE: &str = "no rule allows it";
const PRIVATE: &str = "a private address";
const OWN_NETWORK: &str = "an address of the box's own network";
const OTHER_DNS: &str = "DNS to another server";
const NOT_BOUND: &str = "the name is not one that led to this address";
const ENCRYPTED: &str = "its destination is encrypted";
const UNNAMED: &str = "it does not say for which server";
const OTHER_ADDRESS: &str = "it is for another address";
const MALFORMED: &str = "it is for a malformed name";
const NO_SUCH_NAME: &str = "no name of the box's own network";

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

/// A policy, made ready to judge: what it costs to judge hardly grows with the number of its rules.
#[derive(Debug)]
pub struct Policy {
    link: LinkSpec,
    preset: NetworkPreset,
    any: Book,
    blocks: Blocks,
    names: Names,
    /// Whether there is a rule by name.
    by_name: bool,
    /// The first rule that denies a name.
    name_denied: u32,
    /// The first rule that allows a block.
    block_allowed: u32,
}

/// Where a flow goes, and the first rules that fit it whatever name it has.
#[derive(Debug)]
struct Place {
    look: Look,
    key: IpAddr,
    /// It is the host's alias.
    alias: bool,
    public: bool,
    /// It is DNS, which is for the box's resolver alone.
    dns: bool,
    deny: u32,
    /// The first rule that allows `*`, be the address public or not.
    any: u32,
    block: u32,
}

/// A name that a flow may be for.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    name: &'a str,
    /// It has led to the address.
    bound: bool,
}

/// What the rules and the preset say about a place, taken for that of one name or of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Allow(By),
    Deny {
        why: &'static str,
        /// A rule by name does it.
        by_name: bool,
    },
}

/// What allows it: a rule and its place, or the preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Name,
    Block(u32),
    Any,
    Preset,
}

/// What is known about a flow before it has said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weighed {
    /// It is allowed, whatever name it is for.
    Open,
    Closed(&'static str),
    /// It is allowed for some names.
    Partly {
        /// It is also allowed for names that no rule names.
        unnamed: bool,
        /// It is denied by name for one of the names that have led there.
        denied: bool,
    },
}

impl Policy {
    /// Makes the policy ready.
    pub fn new(policy: &NetworkPolicy, link: &LinkSpec) -> Self {
        let rules = || (0..NONE).zip(&policy.rules);
        let first =
            |fits: fn(&NetworkRule) -> bool| rules().find(|(_, rule)| fits(rule)).map_or(NONE, |(at, _)| at);
        let any: Vec<_> = rules().filter(|(_, rule)| rule.target == NetworkTarget::Any).collect();
        Self {
            link: link.clone(),
            preset: policy.preset,
            any: Book::new(&any, Kind::Address),
            blocks: Blocks::new(rules()),
            names: Names::new(rules()),
            by_name: policy.rules.iter().any(is_by_name),
            name_denied: first(|rule| is_by_name(rule) && rule.verdict == NetworkVerdict::Deny),
            block_allowed: first(|rule| {
                matches!(rule.target, NetworkTarget::Block { .. }) && rule.verdict == NetworkVerdict::Allow
            }),
        }
    }

    /// Judges a new flow, by where it goes and by the names that have led there.
    pub fn judge(&self, flow: &Flow, bindings: &Bindings, now: Instant) -> Judgement {
        let weighed = match self.place(flow.to.ip(), flow.into()) {
            Ok(place) => self.weigh(&place, bindings, now),
            Err(why) => Weighed::Closed(why),
        };
        match weighed {
            Weighed::Open => Judgement::Allow,
            Weighed::Closed(why) => Judgement::Deny(why),
            Weighed::Partly { .. } if flow.protocol == NetworkProtocol::Tcp => Judgement::Inspect,
            // Nobody sees for which of the names it is.
            Weighed::Partly { denied: true, .. } => Judgement::Deny(BY_RULE),
            Weighed::Partly { denied: false, .. } => Judgement::Allow,
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
        let place = self.place(flow.to.ip(), flow.into())?;
        let (unnamed, denied) = match self.weigh(&place, bindings, now) {
            Weighed::Open => return Ok(()),
            Weighed::Closed(why) => return Err(why),
            Weighed::Partly { unnamed, denied } => (unnamed, denied),
        };
        let name = match stated {
            Stated::Tls { encrypted: true, .. } => return Err(ENCRYPTED),
            Stated::Tls { name, encrypted: false } | Stated::Http { name } => name.as_deref(),
            Stated::Other if denied => return Err(BY_RULE),
            Stated::Other => return Ok(()),
        };
        let name = match name.map(|name| (name, literal(name))) {
            None => None,
            Some((_, Some(address))) if Address::of(address).key() == place.key => None,
            Some((_, Some(_))) => return Err(OTHER_ADDRESS),
            Some((name, None)) => Some(plain(name)),
        };
        let Some(name) = name else {
            return if unnamed && !denied { Ok(()) } else { Err(UNNAMED) };
        };
        if !is_name(&name) {
            return Err(MALFORMED);
        }
        let bound = self.names_of(&place, bindings, now).any(|bound| bound == name);
        match self.decide(&place, Some(Candidate { name: &name, bound })) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny { why, .. } => Err(why),
        }
    }

    /// Whether a name may be asked for. `name` is lower case, without a dot at the end.
    ///
    /// # Errors
    ///
    /// Why it is refused, as a phrase.
    pub fn may_resolve(&self, name: &str) -> Result<(), &'static str> {
        let name = plain(name);
        if name.strip_suffix(OWN_ZONE).is_some_and(|front| front.is_empty() || front.ends_with('.')) {
            return self.may_resolve_own(&name);
        }
        let named = self.names.exact(&name, Look::Ever).min(self.names.below(&name, Look::Ever));
        let any = self.any.first(Look::Ever);
        if named.deny < named.allow {
            return Err(BY_RULE);
        }
        // The first rule by name allows it, or there is none and its addresses may be allowed.
        let allow = if named.allow == NONE { any.allow.min(self.block_allowed) } else { named.allow };
        match (allow, any.deny) {
            (allow, deny) if allow < deny => Ok(()),
            (_, NONE) if self.preset == NetworkPreset::None => Err(NO_RULE),
            (_, NONE) => Ok(()),
            _ => Err(BY_RULE),
        }
    }

    fn may_resolve_own(&self, name: &str) -> Result<(), &'static str> {
        let host = [self.link.host4.into(), self.link.host6.into()];
        match name {
            LinkSpec::GATEWAY_NAME => Ok(()),
            LinkSpec::HOST_NAME if host.into_iter().any(|address| self.may_answer(name, address)) => Ok(()),
            LinkSpec::HOST_NAME => Err(NO_RULE),
            _ => Err(NO_SUCH_NAME),
        }
    }

    /// Whether an answer may say that the name has this address: a public name has no private one.
    ///
    /// The names of the box's own network have its addresses and no others, and no other name has one of those.
    pub fn may_answer(&self, name: &str, address: IpAddr) -> bool {
        let name = plain(name);
        if name == LinkSpec::GATEWAY_NAME {
            return self.link.is_gateway(address);
        }
        if self.link.is_host(address) != (name == LinkSpec::HOST_NAME) {
            return false;
        }
        let candidate = Candidate { name: &name, bound: true };
        self.place(address, Look::Ever)
            .is_ok_and(|place| matches!(self.decide(&place, Some(candidate)), Decision::Allow(_)))
    }

    /// Looks at the address, or says why no rule allows it.
    fn place(&self, to: IpAddr, look: Look) -> Result<Place, &'static str> {
        let address = Address::of(to);
        if let Class::Never(why) = address.class() {
            return Err(why);
        }
        let alias = self.link.is_host(to);
        if !alias && address.same().chain(address.within()).any(|address| self.link.has(address)) {
            return Err(OWN_NETWORK);
        }
        let is_dns = matches!(look, Look::Flow(NetworkProtocol::Tcp | NetworkProtocol::Udp, 53 | 853 | 5353));
        let dns = is_dns && (self.by_name || self.preset == NetworkPreset::None);
        let any = self.any.first(look);
        let (mut deny, mut block) = (any.deny, NONE);
        for first in
            address.same().flat_map(|address| self.blocks.around(address)).map(|book| book.first(look))
        {
            deny = deny.min(first.deny);
            block = block.min(if dns { first.listed } else { first.allow });
        }
        for book in address.within().flat_map(|address| self.blocks.around(address)) {
            deny = deny.min(book.first(look).deny);
        }
        let public = address.class() == Class::Public && !alias;
        Ok(Place { look, key: address.key(), alias, public, dns, deny, any: any.allow, block })
    }

    /// The names that have led to a place. The alias has one, and always has it.
    fn names_of<'a>(
        &self,
        place: &Place,
        bindings: &'a Bindings,
        now: Instant,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let alias: Option<&'a str> = place.alias.then_some(LinkSpec::HOST_NAME);
        let bound = (!place.alias).then(|| bindings.names_of(place.key, now));
        alias.into_iter().chain(bound.into_iter().flatten())
    }

    fn weigh(&self, place: &Place, bindings: &Bindings, now: Instant) -> Weighed {
        let unnamed = self.decide(place, None);
        match unnamed {
            Decision::Allow(By::Block(at)) if at < self.name_denied => return Weighed::Open,
            Decision::Allow(_) if self.name_denied == NONE => return Weighed::Open,
            Decision::Allow(_) | Decision::Deny { .. } => {}
        }
        let (mut allowed, mut denied, mut reason) = (false, false, None);
        for name in self.names_of(place, bindings, now) {
            match self.decide(place, Some(Candidate { name, bound: true })) {
                // No other name leads to the alias.
                Decision::Allow(By::Name) if place.alias => return Weighed::Open,
                Decision::Allow(_) => allowed = true,
                Decision::Deny { why, by_name } => {
                    denied |= by_name;
                    reason = reason.or(Some(why));
                }
            }
        }
        match (unnamed, reason) {
            (unnamed, _) if allowed => {
                Weighed::Partly { unnamed: matches!(unnamed, Decision::Allow(_)), denied }
            }
            (_, Some(why)) => Weighed::Closed(why),
            (Decision::Allow(_), None) => Weighed::Partly { unnamed: true, denied },
            (Decision::Deny { why, .. }, None) => Weighed::Closed(why),
        }
    }

    /// Finds the first rule that fits the place, taken for that of the name.
    fn decide(&self, place: &Place, candidate: Option<Candidate<'_>>) -> Decision {
        let named = candidate.map(|candidate| self.named(place, candidate)).unwrap_or_default();
        let deny = place.deny.min(named.deny);
        let any = if place.public && !place.dns { place.any } else { NONE };
        let allow = named.allow.min(place.block).min(any);
        if allow < deny {
            return Decision::Allow(match allow {
                at if at == named.allow => By::Name,
                at if at == place.block => By::Block(at),
                _ => By::Any,
            });
        }
        let preset = match self.preset {
            NetworkPreset::None => false,
            NetworkPreset::Public => place.public,
            NetworkPreset::All => true,
        };
        if deny == NONE && preset && !place.dns {
            return Decision::Allow(By::Preset);
        }
        let why = match named.missed {
            // The rule would have decided, but for one thing.
            Some((at, why)) if at < deny => why,
            _ if deny != NONE => BY_RULE,
            _ if place.dns => OTHER_DNS,
            _ if place.public => NO_RULE,
            _ if place.any != NONE || self.preset == NetworkPreset::Public => PRIVATE,
            _ => NO_RULE,
        };
        Decision::Deny { why, by_name: deny != NONE && deny == named.deny }
    }

    /// The first rules by name that fit.
    fn named(&self, place: &Place, Candidate { name, bound }: Candidate<'_>) -> Named {
        let exact = self.names.exact(name, place.look);
        let all = exact.min(self.names.below(name, place.look));
        let none = Named { deny: all.deny, allow: NONE, missed: None };
        let missed = |at, why| Named { missed: Some((at, why)), ..none };
        let allow = if !place.alias {
            all.allow
        } else if name == LinkSpec::HOST_NAME {
            exact.allow
        } else {
            NONE
        };
        if allow == NONE {
            none
        } else if place.dns {
            missed(allow, OTHER_DNS)
        } else if !bound {
            missed(allow, NOT_BOUND)
        } else if place.public || place.alias || place.block != NONE || self.preset == NetworkPreset::All {
            Named { allow, ..none }
        } else {
            missed(allow, PRIVATE)
        }
    }
}

/// The first rules by name that fit.
#[derive(Clone, Copy, Debug)]
struct Named {
    deny: u32,
    allow: u32,
    /// The first rule that would allow it, and why it does not fit.
    missed: Option<(u32, &'static str)>,
}

impl Default for Named {
    fn default() -> Self {
        Self { deny: NONE, allow: NONE, missed: None }
    }
}

/// Whether an address belongs to the public Internet, in whatever form it is written.
pub(crate) fn is_public(address: IpAddr, link: &LinkSpec) -> bool {
    let address = Address::of(address);
    address.class() == Class::Public && address.same().all(|same| !link.has(same))
}

fn is_by_name(rule: &NetworkRule) -> bool {
    matches!(rule.target, NetworkTarget::Name(_) | NetworkTarget::Below(_))
}

impl From<&Flow> for Look {
    fn from(flow: &Flow) -> Self {
        Self::Flow(flow.protocol, flow.to.port())
    }
}

/// The address that the host of a request is, if it is no name.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

//! The policy in force and the names that have led somewhere, as the switch and the resolver share them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use boxlite_control::{LinkSpec, NetworkPolicy, NetworkProtocol};

use crate::policy::{Bindings, Flow, Judgement, Policy, Stated};

/// Judges flows and names. Nothing in here waits for anything but a lock that is held for a look-up.
#[derive(Debug)]
pub struct Rules {
    link: LinkSpec,
    policy: RwLock<Arc<Policy>>,
    bindings: Mutex<Bindings>,
}

impl Rules {
    /// Begins with this policy and without any bindings.
    pub fn new(policy: &NetworkPolicy, link: &LinkSpec) -> Self {
        let policy = RwLock::new(Arc::new(Policy::new(policy, link)));
        Self { link: link.clone(), policy, bindings: Mutex::default() }
    }

    /// Another policy, for all that is judged from now on.
    pub fn replace(&self, policy: &NetworkPolicy) {
        let policy = Arc::new(Policy::new(policy, &self.link));
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// See [`Policy::judge`].
    pub fn judge(&self, protocol: NetworkProtocol, to: SocketAddr) -> Judgement {
        self.policy().judge(&Flow { protocol, to }, &self.bindings(), Instant::now())
    }

    /// See [`Policy::judge_stated`].
    ///
    /// # Errors
    ///
    /// Why it is refused, as a phrase.
    pub fn judge_stated(&self, to: SocketAddr, stated: &Stated) -> Result<(), &'static str> {
        let flow = Flow { protocol: NetworkProtocol::Tcp, to };
        self.policy().judge_stated(&flow, stated, &self.bindings(), Instant::now())
    }

    /// See [`Bindings::bind`].
    pub fn bind(&self, name: &str, address: IpAddr, lifetime: Duration) {
        self.bindings().bind(name, address, lifetime, Instant::now());
    }

    /// See [`Bindings::name_of`].
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        self.bindings().name_of(address, Instant::now()).map(str::to_owned)
    }

    /// The link of the box.
    pub fn link(&self) -> &LinkSpec {
        &self.link
    }

    fn bindings(&self) -> MutexGuard<'_, Bindings> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

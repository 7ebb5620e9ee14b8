//! The network of a box that is there: looked at, and changed.

use std::time::Duration;

use boxlite_control::{EventKind, Request, Response};

use crate::error::{Error, ErrorKind, Result};
use crate::litebox::LiteBox;
use crate::network::{NetworkInfo, NetworkRateLimit, NetworkSpec, PortInfo, resolve};
use crate::runtime::blocking;

/// How long the network may take to answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// The network of a box: see [`LiteBox::network`].
#[derive(Clone, Debug)]
pub struct NetworkHandle {
    of: LiteBox,
}

impl LiteBox {
    /// The network of the box.
    pub fn network(&self) -> NetworkHandle {
        NetworkHandle { of: self.clone() }
    }

    /// The published ports, as they are now: those that the kernel chooses have numbers while the box runs.
    ///
    /// # Errors
    /// When the box has been removed, or its files cannot be read.
    pub fn ports(&self) -> Result<Vec<PortInfo>> {
        Ok(self.info()?.ports)
    }
}

impl NetworkHandle {
    /// Changes what the box may reach. In a running box it counts at once: flows that the new policy does not allow are
    /// ended. It is recorded first, so that the next start has it even if the running network cannot be told.
    ///
    /// A box gets its network device when it starts: a box that runs cannot change between having one and having none.
    ///
    /// # Errors
    /// When a rule is none, the box runs without a network or is to have none, it has been removed, or its network does not
    /// answer.
    pub async fn update_outbound(&self, spec: NetworkSpec) -> Result<()> {
        let policy = spec.policy()?;
        let runs = self.of.look()?.phase().is_live();
        let (runtime, id) = (self.of.inner.runtime.clone(), self.of.id().to_owned());
        let asked = policy.clone();
        let record = blocking(move || {
            let known = runtime.boxes.get(&id)?;
            let known =
                known.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no box {id}")))?;
            let stop_first = |message: String| {
                Err(Error::new(ErrorKind::InvalidState, message).with_hint("stop the box first"))
            };
            match (&known.network, &asked) {
                (None, Some(_)) if runs => {
                    return stop_first(format!("box {id} runs without a network"));
                }
                (Some(_), None) if runs => {
                    return stop_first(format!("box {id} runs with a network")).map_err(|error: Error| {
                        error.with_hint("a policy of `none` without rules allows nothing, at once")
                    });
                }
                (Some(network), None) if !network.0.ports.is_empty() => {
                    let message = format!("box {id} has published ports, which need a network");
                    return Err(Error::new(ErrorKind::InvalidArgument, message));
                }
                _ => {}
            }
            let fresh = resolve(&spec, &[], NetworkRateLimit::default(), None, &[])?;
            let changed = runtime.boxes.update(&id, |record| match (&mut record.network, asked) {
                (Some(network), Some(policy)) => network.set_policy(policy),
                (network, _) => *network = fresh,
            })?;
            Ok(changed)
        })
        .await?;
        if let (true, Some(policy)) = (runs, policy) {
            self.of.order(&Request::NetworkPolicy(policy.into_control()), DEADLINE).await?;
        }
        self.of.inner.runtime.tell(&record, EventKind::Updated);
        Ok(())
    }

    /// What goes over the network now, and the policy in force.
    ///
    /// # Errors
    /// When the box does not run or has no network, or its network does not answer.
    pub async fn info(&self) -> Result<NetworkInfo> {
        let stopped = |status: &str| {
            Error::new(ErrorKind::Stopped, format!("box {} does not run: it is {status}", self.of.id()))
        };
        let phase = self.of.look()?.phase();
        if !phase.is_live() {
            return Err(stopped(phase.name()));
        }
        match self.of.order(&Request::Network, DEADLINE).await? {
            Some(Response::Network { stats, policy }) => Ok(NetworkInfo::new(*stats, policy)),
            Some(_) => Err(Error::new(ErrorKind::Engine, "the monitor of the box gave another answer")),
            None => Err(stopped(self.of.look()?.phase().name())),
        }
    }
}

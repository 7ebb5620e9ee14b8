//! The machine's services.

use std::path::PathBuf;
use std::sync::Arc;

use boxlite_portal::v1::guest_server::Guest;
use boxlite_portal::v1::{
    InitRequest, InitResponse, PingRequest, PingResponse, ShutdownRequest, ShutdownResponse,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use tonic::{Request, Response, Status};

use super::{invalid, out_of_order};
use crate::agent::Agent;
use crate::console;
use crate::disks::Disks;
use crate::shutdown::Shutdown;

/// The longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// See the proto file.
#[derive(Debug)]
pub(super) struct Service {
    agent: Arc<Agent>,
    shutdown: Shutdown,
}

impl Service {
    pub(super) fn new(agent: Arc<Agent>, shutdown: Shutdown) -> Self {
        Self { agent, shutdown }
    }
}

#[tonic::async_trait]
impl Guest for Service {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let uptime = self.agent.started.elapsed().as_nanos();
        Ok(Response::new(PingResponse { uptime_nanos: u64::try_from(uptime).unwrap_or(u64::MAX) }))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let request = request.into_inner();
        if !valid_hostname(&request.hostname) {
            return Err(invalid(
                "a host name has 1 to 64 letters, digits, dots and dashes, and starts with no dash",
            ));
        }
        let clock = time(request.unix_time_nanos)?;
        self.agent.claim_machine().map_err(out_of_order)?;
        let agent = Arc::clone(&self.agent);
        // A task of its own, so that a client that goes away leaves no half of it; a thread of its own, because mounting
        // may have to repair a file system first.
        let prepared = tokio::task::spawn_blocking(move || prepare(&agent, &request, clock));
        prepared.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let main = self.shutdown.request(request.into_inner()).await;
        Ok(Response::new(ShutdownResponse { main }))
    }
}

fn prepare(
    agent: &Agent,
    request: &InitRequest,
    clock: Option<TimeSpec>,
) -> Result<Response<InitResponse>, Status> {
    let result = prepare_disks(agent, request);
    let done = agent.machine_prepared(request.hostname.clone(), result);
    done.map_err(|error| Status::internal(console::chain(&error)))?;
    if let Some(clock) = clock {
        clock_settime(ClockId::CLOCK_REALTIME, clock)
            .map_err(|errno| Status::internal(format!("cannot set the clock: {errno}")))?;
    }
    nix::unistd::sethostname(&request.hostname)
        .map_err(|errno| Status::internal(format!("cannot set the host name: {errno}")))?;
    let kernel = nix::sys::utsname::uname().map_err(|errno| Status::internal(errno.to_string()))?;
    Ok(Response::new(InitResponse { kernel: kernel.release().to_string_lossy().into_owned() }))
}

fn prepare_disks(agent: &Agent, request: &InitRequest) -> Result<Disks, crate::disks::DiskError> {
    let (image, writable) = (PathBuf::from(&request.image_device), PathBuf::from(&request.writable_device));
    Disks::mount(&agent.settings.run, &image, &writable)
}

/// The wall clock; `None` leaves it alone.
fn time(unix_nanos: u64) -> Result<Option<TimeSpec>, Status> {
    if unix_nanos == 0 {
        return Ok(None);
    }
    let seconds = i64::try_from(unix_nanos / 1_000_000_000).map_err(invalid)?;
    let nanos = i64::try_from(unix_nanos % 1_000_000_000).map_err(invalid)?;
    Ok(Some(TimeSpec::new(seconds, nanos)))
}

fn valid_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=MAX_HOSTNAME).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_plain() {
        let long = "x".repeat(MAX_HOSTNAME);
        for name in ["box", "a-1.example", &long] {
            assert!(valid_hostname(name), "{name}");
        }
        let longer = format!("{long}x");
        for name in ["", "-box", "a b", "a\nb", "ä", "a\0", &longer] {
            assert!(!valid_hostname(name), "{name:?}");
        }
    }

    #[test]
    fn a_time_of_zero_leaves_the_clock_alone() {
        assert_eq!(time(0).unwrap(), None);
        assert_eq!(time(1_500_000_000).unwrap(), Some(TimeSpec::new(1, 500_000_000)));
    }
}

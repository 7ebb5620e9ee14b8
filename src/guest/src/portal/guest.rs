//! The machine's services.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use boxlite_portal::v1::guest_server::Guest;
use boxlite_portal::v1::{
    EventsRequest, FreezeRequest, FreezeResponse, GuestEvent, InitRequest, InitResponse, PingRequest,
    PingResponse, SetClockRequest, SetClockResponse, ShutdownRequest, ShutdownResponse, StatsRequest,
    StatsResponse, ThawRequest, ThawResponse,
};
use nix::errno::Errno;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{invalid, out_of_order};
use crate::agent::Agent;
use crate::clock::{self, Compared};
use crate::disks::Disks;
use crate::events::{SubscribeError, Subscriber};
use crate::network::Network;
use crate::shutdown::Shutdown;
use crate::{console, stats};

/// The longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;
/// How many events may wait between a subscriber's queue and the connection.
const QUEUE: usize = 1;

/// See the proto file.
#[derive(Debug)]
pub(super) struct Service {
    agent: Arc<Agent>,
    shutdown: Shutdown,
    /// One measurement at a time: a disk that does not answer keeps one thread, however often it is asked.
    measuring: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(agent: Arc<Agent>, shutdown: Shutdown) -> Self {
        Self { agent, shutdown, measuring: Arc::new(Semaphore::new(1)) }
    }
}

#[tonic::async_trait]
impl Guest for Service {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Ok(Response::new(PingResponse { uptime_nanos: uptime(&self.agent) }))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let request = request.into_inner();
        if !valid_hostname(&request.hostname) {
            return Err(invalid(
                "a host name has 1 to 64 letters, digits, dots and dashes, and starts with no dash",
            ));
        }
        let network = request.network.as_ref().map(Network::read).transpose();
        let network = network.map_err(|error| invalid(error.to_string()))?;
        self.agent.claim_machine().map_err(out_of_order)?;
        let agent = Arc::clone(&self.agent);
        // A task of its own, so that a client that goes away leaves no half of it; a thread of its own, because mounting
        // may have to repair a file system first.
        let prepared = tokio::task::spawn_blocking(move || prepare(&agent, &request, network));
        prepared.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let main = self.shutdown.request(request.into_inner()).await;
        Ok(Response::new(ShutdownResponse { main }))
    }

    async fn freeze(&self, _: Request<FreezeRequest>) -> Result<Response<FreezeResponse>, Status> {
        let frozen = self.agent.freeze().await;
        let frozen =
            frozen.map_err(|error| Status::internal(format!("cannot stop the container: {error}")))?;
        Ok(Response::new(FreezeResponse { frozen }))
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        let ThawRequest { unix_time_nanos } = request.into_inner();
        // The clock first: nothing of the container sees the wrong time. Also with a wrong one it goes on.
        let compared = set_clock(unix_time_nanos);
        let thawed = self.agent.thaw();
        thawed.map_err(|error| Status::internal(format!("cannot let the container go on: {error}")))?;
        let Compared { ahead, set } = compared?;
        Ok(Response::new(ThawResponse { ahead_nanos: ahead, set }))
    }

    async fn set_clock(
        &self,
        request: Request<SetClockRequest>,
    ) -> Result<Response<SetClockResponse>, Status> {
        let Compared { ahead, set } = set_clock(request.into_inner().unix_time_nanos)?;
        Ok(Response::new(SetClockResponse { ahead_nanos: ahead, set }))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        let turn = Arc::clone(&self.measuring).acquire_owned().await;
        let turn = turn.map_err(|error| Status::internal(error.to_string()))?;
        let places = self.agent.places();
        // A thread of its own, because a file system may have to ask its disk; and none of the runtime's, whose end
        // waits for its threads. It keeps its turn until it is done, also when the client has gone.
        let (sender, measured) = oneshot::channel();
        let thread = thread::Builder::new().name("stats".to_owned()).spawn(move || {
            // An error means that the client has gone, and with it the one who wanted to know.
            drop(sender.send(stats::measure(&places)));
            drop(turn);
        });
        thread.map_err(|error| Status::internal(format!("cannot start a thread: {error}")))?;
        let measured = measured.await.map_err(|error| Status::internal(error.to_string()))?;
        let measured = measured.map_err(|error| Status::internal(console::chain(&error)))?;
        let executions = self.agent.events.activity().executions;
        Ok(Response::new(StatsResponse { executions, uptime_nanos: uptime(&self.agent), ..measured }))
    }

    type EventsStream = ReceiverStream<Result<GuestEvent, Status>>;

    async fn events(&self, _: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let subscriber = self.agent.events.subscribe().map_err(|error| match error {
            SubscribeError::TooMany => Status::resource_exhausted(error.to_string()),
            SubscribeError::Closed => Status::failed_precondition(error.to_string()),
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(tell(subscriber, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn set_clock(unix_nanos: u64) -> Result<Compared, Status> {
    if unix_nanos == 0 {
        return Err(invalid("the time is missing"));
    }
    clock::adjust(unix_nanos).map_err(no_clock)
}

fn prepare(
    agent: &Agent,
    request: &InitRequest,
    network: Option<Network>,
) -> Result<Response<InitResponse>, Status> {
    // At once, since the time is that of the asking; a disk may take long. Told only when the disks have been seen to.
    let clock = match request.unix_time_nanos {
        0 => Ok(()),
        nanos => clock::set(nanos).map_err(no_clock),
    };
    // Before the machine counts as prepared: a container without its network is not what was asked for.
    let up = network.as_ref().map_or(Ok(()), Network::bring_up);
    let result = prepare_disks(agent, request);
    let names = network.map(|network| network.names);
    let done = agent.machine_prepared(request.hostname.clone(), names, result);
    done.map_err(|error| Status::internal(console::chain(&error)))?;
    clock?;
    up.map_err(|error| Status::internal(console::chain(&error)))?;
    nix::unistd::sethostname(&request.hostname)
        .map_err(|errno| Status::internal(format!("cannot set the host name: {errno}")))?;
    let kernel = nix::sys::utsname::uname().map_err(|errno| Status::internal(errno.to_string()))?;
    Ok(Response::new(InitResponse { kernel: kernel.release().to_string_lossy().into_owned() }))
}

fn prepare_disks(agent: &Agent, request: &InitRequest) -> Result<Disks, crate::disks::DiskError> {
    let (image, writable) = (PathBuf::from(&request.image_device), PathBuf::from(&request.writable_device));
    let mut disks = Disks::mount(&agent.settings.run, &image, &writable)?;
    if let Some(share) = &request.share {
        disks.attach_share(&agent.settings.run, share)?;
    }
    Ok(disks)
}

fn no_clock(errno: Errno) -> Status {
    match errno {
        Errno::EINVAL => invalid("the kernel does not count to this time"),
        errno => Status::internal(format!("cannot set the clock: {errno}")),
    }
}

/// Time since the agent started, in nanoseconds.
fn uptime(agent: &Agent) -> u64 {
    u64::try_from(agent.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Sends events until the box has ended or the client goes away.
async fn tell(mut subscriber: Subscriber, sender: mpsc::Sender<Result<GuestEvent, Status>>) {
    loop {
        let event = tokio::select! {
            event = subscriber.next() => event,
            () = sender.closed() => return,
        };
        if event.is_none() || sender.send(Ok(GuestEvent { event })).await.is_err() {
            return;
        }
    }
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
}

//! The orderly end of a box.
//!
//! ```text
//!   signal ──▶ grace ──▶ kill ──▶ executions end ──▶ streams drained ──▶ disks synced ──▶ answer ──▶ power off
//! ```
//!
//! One task goes through it, once. A request that arrives meanwhile can only shorten it: it sends its signal, and the
//! earlier of two deadlines holds. All requests get the same answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use boxlite_portal::v1::{Exit, ShutdownRequest};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::console;
use crate::execution::Execution;
use crate::execution::output::Output;

/// How long executions may take to end once the first process of their namespace has been killed.
const END: Duration = Duration::from_secs(10);
/// How long readers that the main command's output is held for may take to come.
const READERS: Duration = Duration::from_secs(10);
/// How long the answer may take to arrive.
const DELIVERY: Duration = Duration::from_secs(1);
/// Beyond this a deadline is none.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The box's end. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    agent: Arc<Agent>,
    plan: Mutex<Option<watch::Sender<Plan>>>,
    answer: watch::Sender<Option<Option<Exit>>>,
}

/// What is asked for, over all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    signal: i32,
    /// Counts requests, so that each one's signal is sent.
    requests: u32,
    kill_at: Instant,
    drain: Duration,
    discard: bool,
}

impl Plan {
    fn new(request: &ShutdownRequest, now: Instant) -> Self {
        let millis = |millis: u64| Duration::from_millis(millis).min(FAR);
        let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
        let grace = if signal.is_some() { millis(request.grace_millis) } else { Duration::ZERO };
        Self {
            signal: signal.unwrap_or(libc::SIGKILL),
            requests: 1,
            kill_at: now + grace,
            drain: millis(request.drain_millis),
            discard: request.discard,
        }
    }

    fn shortened(self, other: Self) -> Self {
        Self {
            signal: other.signal,
            requests: self.requests + 1,
            kill_at: self.kill_at.min(other.kill_at),
            drain: self.drain.min(other.drain),
            discard: self.discard || other.discard,
        }
    }
}

impl Shutdown {
    /// The end of this agent's box, not asked for yet.
    pub fn new(agent: Arc<Agent>) -> Self {
        let shared = Shared { agent, plan: Mutex::new(None), answer: watch::Sender::new(None) };
        Self { shared: Arc::new(shared) }
    }

    /// Ends the box, or hastens its end. Answers how the main command ended.
    pub async fn request(&self, request: ShutdownRequest) -> Option<Exit> {
        let asked = Plan::new(&request, Instant::now());
        let mut answer = self.shared.answer.subscribe();
        let first = {
            let mut plan = self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner);
            match &*plan {
                Some(plan) => {
                    plan.send_modify(|plan| *plan = plan.shortened(asked));
                    None
                }
                None => {
                    let (sender, receiver) = watch::channel(asked);
                    *plan = Some(sender);
                    Some(receiver)
                }
            }
        };
        if let Some(plan) = first {
            // A task of its own: once begun, it does not stop because a client goes away.
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                let main = end(&shared.agent, plan).await;
                shared.answer.send_replace(Some(main));
            });
        }
        match answer.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(main)) => *main,
            // The sender lives in self.
            Ok(None) | Err(_) => None,
        }
    }

    /// Waits until the box has ended and the answer has arrived: its clients have closed all their connections, or a
    /// second has passed.
    pub async fn answered(&self, connections: &Semaphore, all: usize) {
        let mut answer = self.shared.answer.subscribe();
        if answer.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let all = u32::try_from(all - 1).unwrap_or(u32::MAX);
        // One place is always taken, by the connection that would be accepted next. Too late is as good as arrived.
        drop(tokio::time::timeout(DELIVERY, connections.acquire_many(all)).await);
    }
}

async fn end(agent: &Agent, mut plan: watch::Receiver<Plan>) -> Option<Exit> {
    // Out of a pause, too: what stands still takes no signal.
    if let Err(error) = agent.thaw() {
        console::line(format_args!("cannot let the container go on: {error}"));
    }
    let main = agent.close().await;
    // Whoever starts a box to read its output may come after the end of a short command. A box that is stopped from
    // outside waits for nobody who has not come.
    let unread =
        main.as_ref().filter(|main| main.exit.borrow().is_some()).map(|main| Arc::clone(&main.output));
    let exit = match &main {
        Some(main) => Some(end_main(agent, main, &mut plan).await),
        None => None,
    };
    // With its first process the namespace has ended, and every process in it. What is left is to read their output.
    if tokio::time::timeout(END, agent.table.all_ended()).await.is_err() {
        console::line(format_args!("some executions did not end"));
    }
    drain(agent, unread.as_deref(), &mut plan).await;
    // Executions have ended and their readers have left: nothing more will happen that anybody could be told.
    agent.events.close();
    let discard = plan.borrow().discard;
    if let Some(disks) = agent.take_disks()
        && !discard
    {
        match tokio::task::spawn_blocking(move || disks.unmount()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => console::line(format_args!("cannot write the disk out: {error}")),
            Err(error) => console::line(format_args!("cannot write the disk out: {error}")),
        }
    }
    exit
}

/// Signals and finally kills the main command.
async fn end_main(agent: &Agent, main: &Execution, plan: &mut watch::Receiver<Plan>) -> Exit {
    loop {
        let Plan { signal, kill_at, .. } = *plan.borrow_and_update();
        send(agent, main, signal);
        tokio::select! {
            exit = main.ended() => return exit,
            // Another request; its signal is next. The sender lives as long as the box.
            changed = plan.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(kill_at) => break,
        }
    }
    send(agent, main, libc::SIGKILL);
    main.ended().await
}

fn send(agent: &Agent, main: &Execution, signal: i32) {
    if let Err(errno) = agent.reaper.signal(main.pid, signal) {
        console::line(format_args!("cannot signal the main command: {errno}"));
    }
}

/// Waits until the output that was held for its readers has had them, and no client is attached any more. Whoever is
/// attached may have long; who has not come is not waited for beyond [`READERS`].
async fn drain(agent: &Agent, unread: Option<&Output>, plan: &mut watch::Receiver<Plan>) {
    let since = Instant::now();
    let mut attached = agent.attached.subscribe();
    let all_read = async {
        if let Some(output) = unread {
            // Late or never comes to the same: what counts from here on is who is attached.
            drop(tokio::time::timeout(READERS, output.read_by_all()).await);
        }
        // Whether nobody is attached or nobody counts any more: there is no one to wait for.
        drop(attached.wait_for(|count| *count == 0).await);
    };
    tokio::pin!(all_read);
    loop {
        let until = since + plan.borrow_and_update().drain;
        tokio::select! {
            () = &mut all_read => return,
            changed = plan.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(until) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn another_request_never_lengthens_the_end(
            first in (0..100_u32, any::<u64>(), any::<u64>(), any::<bool>()),
            second in (0..100_u32, any::<u64>(), any::<u64>(), any::<bool>()),
            later in 0..10_000_u64,
        ) {
            let request = |(signal, grace_millis, drain_millis, discard)| {
                ShutdownRequest { signal, grace_millis, drain_millis, discard }
            };
            let now = Instant::now();
            let first = Plan::new(&request(first), now);
            let second = Plan::new(&request(second), now + Duration::from_millis(later));
            let both = first.shortened(second);
            prop_assert!(both.kill_at <= first.kill_at && both.kill_at <= second.kill_at);
            prop_assert!(both.drain <= first.drain && both.drain <= second.drain);
            prop_assert!(both.discard || !(first.discard || second.discard));
            prop_assert_eq!(both.signal, second.signal);
        }
    }

    #[test]
    fn a_signal_of_zero_kills_at_once() {
        let now = Instant::now();
        let plan = Plan::new(&ShutdownRequest { grace_millis: 5000, ..Default::default() }, now);
        assert_eq!((plan.signal, plan.kill_at), (libc::SIGKILL, now));
    }
}

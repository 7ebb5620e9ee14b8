//! What happens in the box, for those who asked to be told.
//!
//! ```text
//!   executions ──┐          ┌─ queue (256) ─▶ subscriber
//!   attached  ───┼─▶ hub ───┤
//!   OOM kills ───┘          └─ queue (256) ─▶ another one
//! ```
//!
//! * Whoever tells the hub something never waits. What has no room in a subscriber's queue is missed, and a count of it
//!   stands in the queue where the gap is.
//! * How busy the box is, is a state and no event: of several changes only the last is told, and never missed. It is told
//!   in its turn, behind what was in the queue when it changed. A change that was undone meanwhile is told as well,
//!   because somebody was there.
//! * An event is bounded, and shared by the queues that hold it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_portal::v1::guest_event::Event;
use boxlite_portal::v1::{
    Activity, ExecExited, ExecFailed, ExecStarted, Exit, Missed, OomKilled, StartFailure,
};
use tokio::sync::watch;

/// The most subscribers at a time.
pub const MAX_SUBSCRIBERS: usize = 16;
/// How many events wait for one subscriber.
pub const QUEUE: usize = 256;
/// How much of a command an event carries, in bytes.
const MAX_ARGS: usize = 1 << 10;
/// How much of the reason for a failure an event carries, in bytes.
const MAX_MESSAGE: usize = 1 << 10;

/// Why there is no subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Too many.
    #[error("{MAX_SUBSCRIBERS} clients are told of events already")]
    TooMany,
    /// The box ends.
    #[error("the box is shutting down")]
    Closed,
}

/// Where everything that happens is told. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    /// Told when there is something new for anybody.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    activity: Activity,
    queues: Vec<(u64, Queue)>,
    next_subscriber: u64,
    closed: bool,
}

/// What one subscriber has not been told yet.
#[derive(Debug)]
struct Queue {
    /// At most [`QUEUE`], and one count behind them of what had no room.
    items: VecDeque<Item>,
    /// The activity has changed, and its turn comes after this many items.
    activity_after: Option<usize>,
}

#[derive(Debug)]
enum Item {
    Event(Arc<Event>),
    Missed(u64),
}

impl Queue {
    fn push(&mut self, event: &Arc<Event>) {
        if self.items.len() < QUEUE {
            self.items.push_back(Item::Event(Arc::clone(event)));
        } else if let Some(Item::Missed(events)) = self.items.back_mut() {
            *events += 1;
        } else {
            self.items.push_back(Item::Missed(1));
        }
    }

    fn pop(&mut self, activity: Activity) -> Option<Event> {
        if self.activity_after == Some(0) {
            self.activity_after = None;
            return Some(Event::Activity(activity));
        }
        let item = self.items.pop_front()?;
        if let Some(items) = &mut self.activity_after {
            *items -= 1;
        }
        Some(match item {
            Item::Event(event) => Arc::unwrap_or_clone(event),
            Item::Missed(events) => Event::Missed(Missed { events }),
        })
    }
}

impl State {
    fn tell(&mut self, event: Event) {
        let event = Arc::new(event);
        self.queues.iter_mut().for_each(|(_, queue)| queue.push(&event));
    }

    fn change(&mut self, change: impl FnOnce(&mut Activity)) {
        change(&mut self.activity);
        for (_, queue) in &mut self.queues {
            queue.activity_after.get_or_insert(queue.items.len());
        }
    }
}

impl Hub {
    /// A hub to which nothing has been told.
    pub fn new() -> Self {
        Self::default()
    }

    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn told(&self, work: impl FnOnce(&mut State)) {
        self.locked(work);
        self.news.send_replace(());
    }

    /// How busy the box is now.
    pub fn activity(&self) -> Activity {
        self.locked(|state| state.activity)
    }

    /// An execution runs. It counts until [`Hub::exited`] is called for it.
    pub fn started(&self, id: &str, args: &[Vec<u8>]) {
        let event = ExecStarted { execution_id: id.to_owned(), args: cut_args(args) };
        self.told(|state| {
            state.tell(Event::ExecStarted(event));
            state.change(|activity| activity.executions += 1);
        });
    }

    /// An execution that ran has ended.
    pub fn exited(&self, id: &str, exit: Exit) {
        let event = ExecExited { execution_id: id.to_owned(), exit: Some(exit) };
        self.told(|state| {
            state.tell(Event::ExecExited(event));
            state.change(|activity| activity.executions -= 1);
        });
    }

    /// An execution did not start.
    pub fn failed(&self, id: &str, args: &[Vec<u8>], failure: &StartFailure) {
        let failure = StartFailure { message: cut_text(&failure.message).to_owned(), ..*failure };
        let event = ExecFailed { execution_id: id.to_owned(), args: cut_args(args), failure: Some(failure) };
        self.told(|state| state.tell(Event::ExecFailed(event)));
    }

    /// The kernel has killed processes of the container: so many since the boot.
    pub fn oom_killed(&self, total: u64) {
        self.told(|state| state.tell(Event::OomKilled(OomKilled { total })));
    }

    /// A client has attached itself to an output. It counts until [`Hub::detached`] is called for it.
    pub fn attached(&self) {
        self.told(|state| state.change(|activity| activity.attached += 1));
    }

    /// A client that was attached has left.
    pub fn detached(&self) {
        self.told(|state| state.change(|activity| activity.attached -= 1));
    }

    /// Tells from now on, beginning with how busy the box is.
    ///
    /// # Errors
    /// When there are too many subscribers, or the box ends.
    pub fn subscribe(&self) -> Result<Subscriber, SubscribeError> {
        let news = self.news.subscribe();
        let id = self.locked(|state| {
            if state.closed {
                return Err(SubscribeError::Closed);
            }
            if state.queues.len() >= MAX_SUBSCRIBERS {
                return Err(SubscribeError::TooMany);
            }
            let id = state.next_subscriber;
            state.next_subscriber += 1;
            state.queues.push((id, Queue { items: VecDeque::new(), activity_after: Some(0) }));
            Ok(id)
        })?;
        Ok(Subscriber { hub: self.clone(), id, news })
    }

    /// The box has ended: subscribers are told what waits for them, and that is all.
    pub fn close(&self) {
        self.told(|state| state.closed = true);
    }
}

/// One who is told. Leaves when it is dropped.
#[derive(Debug)]
pub struct Subscriber {
    hub: Hub,
    id: u64,
    news: watch::Receiver<()>,
}

impl Subscriber {
    /// The next event; `None` once the box has ended and all was told.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            self.news.mark_unchanged();
            let (event, closed) = self.hub.locked(|state| {
                let activity = state.activity;
                let queue = state.queues.iter_mut().find(|(id, _)| *id == self.id);
                (queue.and_then(|(_, queue)| queue.pop(activity)), state.closed)
            });
            if event.is_some() {
                return event;
            }
            if closed || self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.hub.locked(|state| state.queues.retain(|(id, _)| *id != self.id));
    }
}

/// The first bytes of a command. Each argument counts for one byte more than it has, as the kernel counts it, so that
/// empty ones are bounded too.
fn cut_args(args: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut left = MAX_ARGS;
    let mut cut = Vec::new();
    for arg in args {
        if left == 0 {
            break;
        }
        cut.push(arg[..arg.len().min(left)].to_vec());
        left = left.saturating_sub(arg.len() + 1);
    }
    cut
}

/// The first characters of a text.
fn cut_text(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_MESSAGE)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// What a subscriber is told now, or None if it would wait.
    fn now(subscriber: &mut Subscriber) -> Option<Option<Event>> {
        match pin!(subscriber.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    fn all(subscriber: &mut Subscriber) -> Vec<Event> {
        std::iter::from_fn(|| now(subscriber).flatten()).collect()
    }

    fn activity(executions: u32, attached: u32) -> Event {
        Event::Activity(Activity { executions, attached })
    }

    fn oom(total: u64) -> Event {
        Event::OomKilled(OomKilled { total })
    }

    fn args(args: &[&[u8]]) -> Vec<Vec<u8>> {
        args.iter().map(|arg| arg.to_vec()).collect()
    }

    #[test]
    fn the_first_word_is_how_busy_the_box_is() {
        let hub = Hub::new();
        hub.started("x", &[]);
        hub.attached();
        let mut subscriber = hub.subscribe().unwrap();
        assert_eq!(all(&mut subscriber), [activity(1, 1)]);
        assert_eq!(now(&mut subscriber), None);
    }

    #[test]
    fn an_execution_is_told_from_its_start_to_its_exit() {
        let hub = Hub::new();
        let mut subscriber = hub.subscribe().unwrap();
        assert_eq!(all(&mut subscriber), [activity(0, 0)]);
        let command = args(&[b"sh", b"-c", b"true"]);
        hub.started("x", &command);
        let started = Event::ExecStarted(ExecStarted { execution_id: "x".into(), args: command.clone() });
        assert_eq!(all(&mut subscriber), [started, activity(1, 0)]);
        hub.exited("x", Exit::default());
        let exited = Event::ExecExited(ExecExited { execution_id: "x".into(), exit: Some(Exit::default()) });
        assert_eq!(all(&mut subscriber), [exited, activity(0, 0)]);
        let failure = StartFailure { message: "no".into(), errno: 2, ..Default::default() };
        hub.failed("y", &command, &failure);
        let failed = ExecFailed { execution_id: "y".into(), args: command, failure: Some(failure) };
        assert_eq!(all(&mut subscriber), [Event::ExecFailed(failed)]);
    }

    #[test]
    fn of_several_changes_only_the_last_is_told_even_if_it_undoes_the_others() {
        let hub = Hub::new();
        let mut subscriber = hub.subscribe().unwrap();
        assert_eq!(all(&mut subscriber), [activity(0, 0)]);
        hub.attached();
        hub.detached();
        assert_eq!(all(&mut subscriber), [activity(0, 0)]);
        hub.oom_killed(1);
        hub.attached();
        hub.oom_killed(2);
        hub.attached();
        assert_eq!(all(&mut subscriber), [oom(1), activity(0, 2), oom(2)]);
    }

    #[test]
    fn a_subscriber_that_does_not_read_learns_how_much_it_missed_where_it_did() {
        let hub = Hub::new();
        let mut slow = hub.subscribe().unwrap();
        let mut quick = hub.subscribe().unwrap();
        let count = QUEUE as u64;
        for total in 0..count + 10 {
            hub.oom_killed(total);
            assert_eq!(all(&mut quick).last(), Some(&oom(total)));
        }
        hub.attached();
        assert_eq!(now(&mut slow), Some(Some(activity(0, 1))), "a state is never missed");
        assert_eq!(now(&mut slow), Some(Some(oom(0))));
        hub.oom_killed(1000);
        assert_eq!(now(&mut slow), Some(Some(oom(1))));
        hub.oom_killed(1001);
        let rest = all(&mut slow);
        let missed = rest.iter().position(|event| matches!(event, Event::Missed(_))).unwrap();
        assert_eq!(rest[missed - 1], oom(count - 1));
        assert_eq!(rest[missed..], [Event::Missed(Missed { events: 11 }), oom(1001)]);
    }

    #[test]
    fn the_number_of_subscribers_is_bounded_and_one_that_leaves_makes_room() {
        let hub = Hub::new();
        let mut subscribers: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| hub.subscribe().unwrap()).collect();
        assert_eq!(hub.subscribe().unwrap_err(), SubscribeError::TooMany);
        subscribers.pop();
        assert!(hub.subscribe().is_ok());
    }

    #[test]
    fn at_the_end_of_the_box_what_waits_is_told_and_then_no_more() {
        let hub = Hub::new();
        let mut subscriber = hub.subscribe().unwrap();
        hub.oom_killed(1);
        hub.close();
        assert_eq!(now(&mut subscriber), Some(Some(activity(0, 0))));
        assert_eq!(now(&mut subscriber), Some(Some(oom(1))));
        assert_eq!(now(&mut subscriber), Some(None));
        assert_eq!(hub.subscribe().unwrap_err(), SubscribeError::Closed);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let hub = Hub::new();
        let mut subscriber = hub.subscribe().unwrap();
        let waiting = tokio::spawn(async move { (subscriber.next().await, subscriber.next().await) });
        tokio::task::yield_now().await;
        hub.oom_killed(3);
        assert_eq!(waiting.await.unwrap(), (Some(activity(0, 0)), Some(oom(3))));
    }

    #[test]
    fn the_reason_for_a_failure_is_cut_between_two_characters() {
        let hub = Hub::new();
        let mut subscriber = hub.subscribe().unwrap();
        let message = format!("x{}", "ä".repeat(MAX_MESSAGE));
        hub.failed("x", &[], &StartFailure { message, ..Default::default() });
        let Some(Event::ExecFailed(failed)) = all(&mut subscriber).pop() else { panic!("no failure") };
        assert_eq!(failed.failure.unwrap().message, format!("x{}", "ä".repeat(MAX_MESSAGE / 2 - 1)));
    }

    #[test]
    fn a_command_of_nothing_but_empty_arguments_is_cut_too() {
        assert_eq!(cut_args(&vec![Vec::new(); 10_000]).len(), MAX_ARGS);
    }

    proptest! {
        #[test]
        fn a_command_is_cut_to_its_first_bytes(
            args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..60),
        ) {
            let cut = cut_args(&args);
            prop_assert!(cut.iter().map(Vec::len).sum::<usize>() <= MAX_ARGS && cut.len() <= MAX_ARGS);
            let whole = args.concat();
            prop_assert!(whole.starts_with(&cut.concat()));
            if args.iter().map(|arg| arg.len() + 1).sum::<usize>() <= MAX_ARGS {
                prop_assert_eq!(cut, args);
            }
        }
    }
}

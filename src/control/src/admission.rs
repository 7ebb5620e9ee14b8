//! Which order fits which state: a pure function, asked by library and monitor alike.
//!
//! ```text
//!   order      leads to      from
//!   start      Starting      Created, Restarting, Dormant, Stopped, Failed; Stopping once it has come to its end
//!   stop       Stopping      Starting, Running, Paused, Restarting, Stopping
//!   restart    Starting      all but none
//!   signal     (stays)       Running, Stopping
//!   pause      Paused        Running
//!   resume     Running       Paused
//!   exec       (stays)       Running; starts Created and Dormant, waits for Starting
//!   attach     (stays)       Running, Stopping; waits for Starting
//!   remove     (gone)        Created, Dormant, Stopped, Failed
//! ```
//!
//! An order whose end has been reached already is admitted and does nothing, except those of which people mean one of two:
//! pausing what is paused, resuming what runs. Everything else is refused in words that name the state.

use std::fmt;

/// The state of a box as far as orders are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Created, and never started.
    Created,
    /// Its machine boots.
    Starting,
    /// Its main command runs.
    Running,
    /// Its virtual CPUs stand still.
    Paused,
    /// An orderly end has begun.
    Stopping,
    /// It waits for its next run.
    Restarting,
    /// It was stopped because nothing was done in it.
    Dormant,
    /// It has ended.
    Stopped,
    /// It could not start, or its machine was lost.
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Restarting,
        Self::Dormant,
        Self::Stopped,
        Self::Failed,
    ];

    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Dormant | Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether a box in this state has a monitor.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Restarting)
    }
}

/// What somebody wants of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Order {
    /// Its main command is to run.
    Start,
    /// It is to end.
    Stop,
    /// It is to end if it runs, and to run again.
    Restart,
    /// A signal for its main command.
    Signal,
    /// Its virtual CPUs are to stand still.
    Pause,
    /// They are to go on.
    Resume,
    /// A command is to run in it.
    Exec,
    /// Somebody wants the main command's streams.
    Attach,
    /// It is to be gone.
    Remove,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Signal,
        Self::Pause,
        Self::Resume,
        Self::Exec,
        Self::Attach,
        Self::Remove,
    ];

    fn refusal(self) -> &'static str {
        match self {
            Self::Start => "it cannot be started",
            Self::Stop => "it cannot be stopped",
            Self::Restart => "it cannot be restarted",
            Self::Signal => "its main command gets no signal",
            Self::Pause => "it cannot be paused",
            Self::Resume => "there is nothing to resume",
            Self::Exec => "no command can be run in it",
            Self::Attach => "there is nothing to attach to",
            Self::Remove => "it cannot be removed",
        }
    }
}

/// What becomes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is done now.
    Go,
    /// What is wanted is so already.
    Already,
    /// The box is started first, or its start awaited.
    AfterStart,
    /// The end that has begun is awaited first.
    AfterEnd,
    /// It is not done.
    Refuse(Refusal),
}

/// A refused order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The state.
    pub phase: Phase,
    /// The order.
    pub order: Order,
}

impl Refusal {
    /// What could be done about it.
    pub fn hint(self) -> Option<&'static str> {
        match (self.phase, self.order) {
            (Phase::Paused, Order::Resume) => None,
            (Phase::Paused, Order::Remove) => Some("stop it first, or remove it by force"),
            (Phase::Paused, _) => Some("resume it first"),
            (Phase::Starting | Phase::Running | Phase::Stopping | Phase::Restarting, Order::Remove) => {
                Some("stop it first, or remove it by force")
            }
            (Phase::Created | Phase::Dormant | Phase::Stopped | Phase::Failed, _) => Some("start it first"),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}: {}", self.phase.name(), self.order.refusal())
    }
}

/// Says what becomes of an order to a box in this state.
pub fn admit(phase: Phase, order: Order) -> Admission {
    use Admission::{AfterEnd, AfterStart, Already, Go};
    use Phase::{Created, Dormant, Failed, Paused, Restarting, Running, Starting, Stopped, Stopping};
    match (order, phase) {
        (Order::Start, Created | Dormant | Stopped | Failed | Restarting) => Go,
        (Order::Start, Starting | Running) => Already,
        (Order::Start | Order::Restart, Stopping) => AfterEnd,

        (Order::Stop, Starting | Running | Paused | Restarting | Stopping) => Go,
        (Order::Stop, Created | Dormant | Stopped | Failed) => Already,

        (Order::Restart, _) => Go,

        (Order::Signal, Running | Stopping) => Go,

        (Order::Pause, Running) => Go,
        (Order::Resume, Paused) => Go,

        (Order::Exec, Running) => Go,
        (Order::Exec, Created | Dormant | Starting) => AfterStart,

        (Order::Attach, Running | Stopping) => Go,
        (Order::Attach, Starting) => AfterStart,

        (Order::Remove, Created | Dormant | Stopped | Failed) => Go,

        (order, phase) => Admission::Refuse(Refusal { phase, order }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The arrows of the diagram in `status.rs`, and those that lead out of a box without a monitor.
    const ARROWS: &[(Phase, Phase)] = &[
        (Phase::Created, Phase::Starting),
        (Phase::Starting, Phase::Running),
        (Phase::Starting, Phase::Stopping),
        (Phase::Starting, Phase::Failed),
        (Phase::Starting, Phase::Restarting),
        (Phase::Running, Phase::Paused),
        (Phase::Running, Phase::Stopping),
        (Phase::Running, Phase::Failed),
        (Phase::Running, Phase::Restarting),
        (Phase::Paused, Phase::Running),
        (Phase::Paused, Phase::Stopping),
        (Phase::Paused, Phase::Failed),
        (Phase::Stopping, Phase::Stopped),
        (Phase::Stopping, Phase::Dormant),
        (Phase::Stopping, Phase::Failed),
        (Phase::Stopping, Phase::Restarting),
        (Phase::Stopping, Phase::Starting),
        (Phase::Restarting, Phase::Starting),
        (Phase::Restarting, Phase::Stopped),
        (Phase::Dormant, Phase::Starting),
        (Phase::Stopped, Phase::Starting),
        (Phase::Failed, Phase::Starting),
    ];

    /// A box as people think of it: what is there, and what they can do with it. Written without a look at [`admit`].
    #[derive(Clone, Copy)]
    struct Model {
        machine: bool,
        main: bool,
        frozen: bool,
        ending: bool,
        waits_for_next_run: bool,
        fresh_or_asleep: bool,
    }

    impl Model {
        fn of(phase: Phase) -> Self {
            let machine = matches!(phase, Phase::Starting | Phase::Running | Phase::Paused | Phase::Stopping);
            Self {
                machine,
                main: machine && phase != Phase::Starting,
                frozen: phase == Phase::Paused,
                ending: phase == Phase::Stopping,
                waits_for_next_run: phase == Phase::Restarting,
                fresh_or_asleep: matches!(phase, Phase::Created | Phase::Dormant),
            }
        }

        fn allows(self, order: Order) -> bool {
            let monitored = self.machine || self.waits_for_next_run;
            match order {
                // A paused box has been started, and what its caller expects of a started box it does not do.
                Order::Start => !self.frozen,
                Order::Stop | Order::Restart => true,
                Order::Signal => self.main && !self.frozen,
                Order::Pause => self.main && !self.frozen && !self.ending,
                Order::Resume => self.frozen,
                Order::Exec => {
                    (self.machine && !self.frozen && !self.ending) || (!monitored && self.fresh_or_asleep)
                }
                Order::Attach => self.machine && !self.frozen,
                Order::Remove => !monitored,
            }
        }
    }

    fn phase() -> impl Strategy<Value = Phase> {
        proptest::sample::select(Phase::ALL.as_slice())
    }

    fn order() -> impl Strategy<Value = Order> {
        proptest::sample::select(Order::ALL.as_slice())
    }

    proptest! {
        #[test]
        fn an_order_is_refused_exactly_when_the_model_does_not_allow_it(phase in phase(), order in order()) {
            let refused = matches!(admit(phase, order), Admission::Refuse(_));
            prop_assert_eq!(refused, !Model::of(phase).allows(order), "{:?} {:?}", phase, order);
        }

        #[test]
        fn orders_lead_along_the_arrows_and_nowhere_else(start in phase(), orders in proptest::collection::vec(order(), 0..30)) {
            let mut phase = start;
            for order in orders {
                let target = match order {
                    Order::Start | Order::Restart => Phase::Starting,
                    Order::Stop => Phase::Stopping,
                    Order::Pause => Phase::Paused,
                    Order::Resume => Phase::Running,
                    Order::Signal | Order::Exec | Order::Attach | Order::Remove => phase,
                };
                let arrow = |from, to| from == to || ARROWS.contains(&(from, to));
                match admit(phase, order) {
                    // A box that is made to end takes the way through its end.
                    Admission::Go if order == Order::Restart && phase.is_live() => {
                        prop_assert!(arrow(phase, Phase::Stopping) || phase == Phase::Restarting);
                        phase = Phase::Starting;
                    }
                    // With no machine there is nothing to end: the wait for the next one is over.
                    Admission::Go if (order, phase) == (Order::Stop, Phase::Restarting) => phase = Phase::Stopped,
                    Admission::Go => {
                        prop_assert!(arrow(phase, target), "{:?} {:?} {:?}", phase, order, target);
                        phase = target;
                    }
                    Admission::AfterEnd => {
                        prop_assert!(arrow(phase, Phase::Stopped));
                        phase = target;
                    }
                    Admission::AfterStart => {
                        prop_assert!(arrow(phase, Phase::Starting));
                        phase = Phase::Running;
                    }
                    Admission::Already => {}
                    Admission::Refuse(refusal) => {
                        let words = refusal.to_string();
                        prop_assert!(words.contains(phase.name()), "{}", words);
                        // No arrow was barred: what is refused has none, or one that a box takes by itself.
                        let by_itself = (phase, target) == (Phase::Starting, Phase::Running);
                        prop_assert!(
                            target == phase || by_itself || !ARROWS.contains(&(phase, target)),
                            "{:?} {:?}", phase, order
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_what_the_box_is_and_what_could_be_done() {
        let Admission::Refuse(refusal) = admit(Phase::Paused, Order::Exec) else { panic!("not refused") };
        assert_eq!(refusal.to_string(), "it is paused: no command can be run in it");
        assert_eq!(refusal.hint(), Some("resume it first"));
    }
}

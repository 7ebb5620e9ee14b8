//! The resolver at the gateway.
//!
//! ```text
//!   question ─▶ read ─▶ ours? ─▶ may it be asked for? ─▶ known? ─▶ the host's resolvers
//!                 │       │              │                  │              │
//!   answer ◀──────┴───────┴─── NXDOMAIN ─┘    addresses the policy does not allow taken out, the others bound to the name
//! ```
//!
//! The name that was asked for is judged, and it is the one that its addresses are bound to, through whatever other names
//! it leads to them. An address is bound before its answer goes out. Of records that carry hints for other ways to a server
//! (HTTPS, SVCB), and of additional sections, a guest sees nothing.

mod cache;
mod local;
mod message;
pub(crate) mod stream;
mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boxlite_control::LinkSpec;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Record, RecordType};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use crate::rules::Rules;
use cache::{Cache, Known};
use local::Said;
use message::{Asked, Read};
use upstream::Upstream;

/// The most questions that are under way.
const UNDER_WAY: usize = 256;
/// The longest that a binding lasts, and that a guest is told that an answer lives: a day, in seconds.
const LONGEST: u32 = 24 * 60 * 60;

/// A question of the guest, as it came.
#[derive(Debug)]
pub struct Question {
    /// The asker's own mark, which the answer carries.
    pub id: u64,
    /// The DNS message (RFC 1035), without a length in front.
    pub message: Vec<u8>,
    /// It came over TCP: an answer may be as long as 65535 bytes.
    pub stream: bool,
}

/// The answer to a question.
#[derive(Debug)]
pub struct Answer {
    /// The mark of the question.
    pub id: u64,
    /// The DNS message, without a length in front. Empty: there is no answer, not even one that says so.
    pub message: Vec<u8>,
}

/// Called for each name that the policy refuses, with the name and why: from the resolver's thread, and must not block.
pub type OnDenied = Box<dyn Fn(&str, &'static str) + Send + Sync>;

/// What a resolver needs of a policy.
trait Judge: Send + Sync {
    fn may_resolve(&self, name: &str) -> Result<(), &'static str>;
    fn may_answer(&self, name: &str, address: IpAddr) -> bool;
    fn bind(&self, name: &str, address: IpAddr, lifetime: Duration);
    fn link(&self) -> &LinkSpec;
}

impl Judge for Rules {
    fn may_resolve(&self, name: &str) -> Result<(), &'static str> {
        self.policy().may_resolve(name)
    }

    fn may_answer(&self, name: &str, address: IpAddr) -> bool {
        self.policy().may_answer(name, address)
    }

    fn bind(&self, name: &str, address: IpAddr, lifetime: Duration) {
        Rules::bind(self, name, address, lifetime);
    }

    fn link(&self) -> &LinkSpec {
        Rules::link(self)
    }
}

/// What all questions share.
struct Desk {
    rules: Arc<dyn Judge>,
    on_denied: OnDenied,
    upstream: Upstream,
    cache: Mutex<Cache>,
}

/// A resolver on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct Resolver {
    /// `None` once it has to end.
    questions: Option<mpsc::Sender<Question>>,
    answers: Mutex<Receiver<Answer>>,
    wake: Arc<EventFd>,
    under_way: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts the thread. `servers` are asked; when there are none, those of the host's `/etc/resolv.conf`.
    ///
    /// # Errors
    ///
    /// When there can be no thread or no descriptor.
    pub fn start(servers: &[SocketAddr], rules: Arc<Rules>, on_denied: OnDenied) -> io::Result<Self> {
        Self::start_with(servers, rules, on_denied)
    }

    fn start_with(servers: &[SocketAddr], rules: Arc<dyn Judge>, on_denied: OnDenied) -> io::Result<Self> {
        let desk = Desk { rules, on_denied, upstream: Upstream::new(servers), cache: Mutex::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (questions, asked) = mpsc::channel(UNDER_WAY);
        let (sender, answers) = sync_channel(UNDER_WAY);
        let waker = Arc::clone(&wake);
        // Dropping the runtime ends all that is under way.
        let serve = move || runtime.block_on(serve(desk, asked, sender, waker));
        let thread = std::thread::Builder::new().name("dns".into()).spawn(serve)?;
        Ok(Self {
            questions: Some(questions),
            answers: Mutex::new(answers),
            wake,
            under_way: Arc::default(),
            thread: Some(thread),
        })
    }

    /// Asks. `false`: too many questions are under way, and this one is dropped.
    pub fn ask(&self, question: Question) -> bool {
        // There is room for the answer of each question that is under way.
        if self.under_way.load(Ordering::Relaxed) >= UNDER_WAY {
            return false;
        }
        let asked = self.questions.as_ref().is_some_and(|questions| questions.try_send(question).is_ok());
        if asked {
            self.under_way.fetch_add(1, Ordering::Relaxed);
        }
        asked
    }

    /// The next answer that is there.
    pub fn take(&self) -> Option<Answer> {
        // Cleared first: an answer that comes later sets it again. Nothing to clear is no error.
        self.wake.read().ok();
        let answer = self.answers.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()?;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        Some(answer)
    }
}

impl AsFd for Resolver {
    /// Readable (level) while there may be answers to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.questions = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the resolver has panicked");
        }
    }
}

async fn serve(
    desk: Desk,
    mut asked: mpsc::Receiver<Question>,
    answers: SyncSender<Answer>,
    wake: Arc<EventFd>,
) {
    let desk = Arc::new(desk);
    while let Some(Question { id, message, stream }) = asked.recv().await {
        let (desk, answers, wake) = (Arc::clone(&desk), answers.clone(), Arc::clone(&wake));
        tokio::spawn(async move {
            let message = desk.answer(&message, stream).await;
            // There is room for it, unless nobody wants it any more.
            if answers.try_send(Answer { id, message }).is_ok()
                && let Err(errno) = wake.write(1)
            {
                tracing::error!(%errno, "nobody can be told of an answer");
            }
        });
    }
}

impl Desk {
    async fn answer(&self, message: &[u8], stream: bool) -> Vec<u8> {
        let asked = match message::read(message, stream) {
            Read::Question(asked) => asked,
            Read::Answer(answer) => return answer,
            Read::Nothing => return Vec::new(),
        };
        let (code, records) = self.look_up(&asked).await;
        asked.answer(code, &records)
    }

    async fn look_up(&self, asked: &Asked) -> (ResponseCode, Vec<Record>) {
        let kind = asked.kind();
        if asked.class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return (ResponseCode::Refused, Vec::new());
        }
        if kind == RecordType::ANY {
            return (ResponseCode::NotImp, Vec::new());
        }
        let name = asked.name();
        let said = local::answer(&name, &asked.query.name, kind, self.rules.link());
        let is_local = said != Said::Nothing;
        // The name of the host is known here, and not everybody may have it.
        if (!is_local || name == LinkSpec::HOST_NAME)
            && let Err(why) = self.rules.may_resolve(&name)
        {
            (self.on_denied)(&name, why);
            return (ResponseCode::NXDomain, Vec::new());
        }
        let code = said.code();
        match said {
            Said::Nothing => {}
            Said::NotThere => return (code, Vec::new()),
            Said::Records(records) => return (code, records),
        }
        if !is_passed_on(kind) {
            return (ResponseCode::NoError, Vec::new());
        }
        let known = self.known(&name, asked).await;
        match known {
            Some(known) => (known.code, self.allowed(&name, kind, known.records)),
            None => (ResponseCode::ServFail, Vec::new()),
        }
    }

    async fn known(&self, name: &str, asked: &Asked) -> Option<Known> {
        let key = (name.to_owned(), asked.kind());
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache().get(&key, Instant::now()) {
            return Some(known);
        }
        let answer = self.upstream.ask(&asked.query.name, asked.kind()).await?;
        let known = Known::new(answer, Instant::now());
        cache().put(key, &known);
        Some(known)
    }

    /// What of an answer the guest may see. Its addresses are bound to the name.
    fn allowed(&self, name: &str, kind: RecordType, records: Vec<Record>) -> Vec<Record> {
        let mut told = false;
        let mut allowed = Vec::with_capacity(records.len());
        for mut record in records {
            record.ttl = record.ttl.min(LONGEST);
            if let Some(address) = record.data.ip_addr() {
                if !self.rules.may_answer(name, address) {
                    if !told {
                        (self.on_denied)(name, "its address is not a public one");
                    }
                    told = true;
                    continue;
                }
                self.rules.bind(name, address, Duration::from_secs(record.ttl.into()));
            }
            // What nobody has asked for, signatures among them, is left out.
            if record.record_type() == kind || record.record_type() == RecordType::CNAME {
                allowed.push(record);
            }
        }
        allowed
    }
}

/// Kinds of records that say nothing about other ways to a server.
fn is_passed_on(kind: RecordType) -> bool {
    use RecordType::{A, AAAA, CAA, CNAME, MX, NAPTR, NS, PTR, SOA, SRV, SSHFP, TLSA, TXT};
    matches!(kind, A | AAAA | CAA | CNAME | MX | NAPTR | NS | PTR | SOA | SRV | SSHFP | TLSA | TXT)
}

#[cfg(test)]
mod tests;
